"""`consumer demo`: a whole shop in one process, and what it shows."""

import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumer.demo.answers import AnswerReader, decode_answers
from consumer.demo.catalogue import DemoListing, own_listings, shipped_listings
from consumer.demo.embedded import EmbeddedBroker, EmbeddedStore
from consumer.demo.running import PARTITIONS, RunningShop, demo_broken_events, demo_settings, logs_in, running_service
from consumer.demo.scenario import events_in_all, play
from consumer.demo.summary import Story, show
from consumer.errors import EnricherError
from consumer.schema_registry import SchemaRegistry
from consumer.settings import Settings

LOG_LINES_SHOWN = 5


def run_demo(*, listings: Path | None, seconds: float | None, console: Console) -> int:
    """Starts everything, publishes, waits for all answers, stops everything and prints what was seen.

    Args:
        listings: a JSON lines file of one's own instead of the listings that ship.
        seconds: stop after this long, with what is done by then; None: play to the end.
    Returns:
        The process's exit code: 0, also when stopped by Ctrl-C or SIGTERM, or that of the error it prints.
    """
    with tempfile.TemporaryDirectory(prefix="demo-log-") as folder:
        log = Path(folder) / "service.log"
        try:
            catalogue = shipped_listings() if listings is None else own_listings(listings)
            with logs_in(log), _sigterm_as_ctrl_c():
                story = _run(catalogue, own_file=listings is not None, seconds=seconds, console=console)
        except KeyboardInterrupt:
            console.print("Stopped. Broker and store are gone with all they held.")
            return 0
        except EnricherError as error:
            console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
            _show_log(log, console)
            return error.exit_code
    show(story, console)
    return 0


def _run(catalogue: Sequence[DemoListing], *, own_file: bool, seconds: float | None, console: Console) -> Story:
    ends_at_s = math.inf if seconds is None else time.monotonic() + seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with EmbeddedBroker() as broker, EmbeddedStore() as store:
        settings = demo_settings(bootstrap_servers=broker.bootstrap_servers, redis_url=store.url)
        kafka = settings.kafka
        broker.create_topics([kafka.input_topic, kafka.output_topic, kafka.dead_letter_topic], partitions=PARTITIONS)
        console.print(f"Broker: Tansu, in memory. Store: {store.kind}. Model: {settings.model.bundle.name}.")
        registry = SchemaRegistry(settings.schema_registry.url, settings.schema_registry.properties)
        jpeg = next((one.cover for one in catalogue if one.cover), None)
        broken = demo_broken_events(settings, registry, jpeg=jpeg)
        reader = AnswerReader(
            kafka.bootstrap_servers,
            output_topic=kafka.output_topic,
            dead_letter_topic=kafka.dead_letter_topic,
            partitions=PARTITIONS,
        )
        with Progress(*columns, console=console) as progress, reader, running_service(settings, registry) as service:
            shop = RunningShop(
                settings, registry=registry, reader=reader, service=service, progress=progress, ends_at_s=ends_at_s
            )
            shop.expect(events_in_all(catalogue, broken))
            figures = play(shop, catalogue, broken, version=time.time_ns() // 1_000_000)
        return Story(
            listings=catalogue,
            events=decode_answers(reader.answers(), registry),
            dead_letters=reader.dead_letters(),
            broken_names={event.key: event.name for event in broken},
            published=shop.sent,
            figures=figures,
            stored=_stored_entries(settings),
            own_file=own_file,
        )


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM unwind as Ctrl-C does: dying at once would leave broker and store behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _stored_entries(settings: Settings) -> int:
    with redis.Redis.from_url(settings.redis.url.get_secret_value()) as client:
        return int(client.dbsize())


def _show_log(log: Path, console: Console) -> None:
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for line in lines[-LOG_LINES_SHOWN:]:
        console.print(f"  {escape(line)}", soft_wrap=True)
