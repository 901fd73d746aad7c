"""The whole service on the embedded broker and store with an engine: what `pipeline` and `swaps` measure."""

import argparse
import io
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, TopicPartition

from consumer.codec import FRAME, SOURCE_HEADER
from consumer.demo.catalogue import DemoListing, shipped_listings
from consumer.demo.embedded import QUIET, EmbeddedBroker, EmbeddedStore
from consumer.demo.running import PARTITIONS, demo_settings, logs_in
from consumer.publish import Publisher
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.service import Service
from consumer.settings import ModelSettings, Settings

_LOOK_S = 0.02
_QUIET_S_MAX = 60.0  # without progress
_STOP_S_MAX = 60.0
_READ_S_MAX = 300.0
_LOG_LINES_SHOWN = 5


class Failed(Exception):
    """What was to be measured did not happen."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the enriched or, with `dead`, of the dead-letter topic."""

    source: str
    value: bytes
    dead: bool


class Shop:
    """Broker, store and registry run; the service runs while `serving` is open."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = SchemaRegistry(settings.schema_registry.url, settings.schema_registry.properties)
        self.publisher = Publisher(settings, self.registry)
        self.service = Service(settings, registry=self.registry)
        self._ended: Future[None] | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The service on a thread; drained at the end. Raises: whatever it ended with."""
        stop = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="service") as executor:
            self._ended = executor.submit(self.service.run, stop)
            try:
                yield
            finally:
                stop.set()
            self._ended.result(_STOP_S_MAX)

    def done(self) -> int:
        """Input records that the service is done with, dead letters among them."""
        samples = [sample for metric in self.service.metrics.records.collect() for sample in metric.samples]
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Raises: Failed: nothing was done for a minute; or what the service ended with."""
        before, since_s = self.done(), time.monotonic()
        while not reached():
            if self._ended is not None and self._ended.done():
                self._ended.result()
                raise Failed(f"{what}: the service ended before")
            if (now := self.done()) > before:
                before, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > _QUIET_S_MAX:
                raise Failed(f"{what}: not within {_QUIET_S_MAX:g} s; {now} records are done")
            time.sleep(_LOOK_S)

    def answers(self, expected: int) -> list[Answer]:
        """All records of both topics; more are waited for while there are fewer than expected."""
        kafka, deadline_s = self.settings.kafka, time.monotonic() + _READ_S_MAX
        consumer = Consumer(
            {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False, "logger": QUIET}
        )
        try:
            topics = (kafka.output_topic, kafka.dead_letter_topic)
            consumer.assign([TopicPartition(topic, number, 0) for topic in topics for number in range(PARTITIONS)])
            found: list[Answer] = []
            while messages := consumer.consume(10_000, 2.0 if len(found) >= expected else 10.0):
                found += [_answer(message, kafka.dead_letter_topic) for message in messages if message.error() is None]
                if time.monotonic() > deadline_s:
                    raise Failed(f"expected {expected} answers, found {len(found)} within {_READ_S_MAX:g} s")
        finally:
            consumer.close()
        return found

    def event(self, answer: Answer) -> Any:
        """The enriched event, decoded by the schema that it names."""
        number = FRAME.unpack_from(answer.value)[1]
        schema = self.registry.schemas([number])[number]
        assert isinstance(schema, ParsedSchema)
        return fastavro.schemaless_reader(io.BytesIO(answer.value[FRAME.size :]), schema.schema, None)


def _answer(message: Any, dead_letter_topic: str) -> Answer:
    headers = {name: value.decode() for name, value in message.headers() or [] if value is not None}
    if message.topic() == dead_letter_topic:
        return Answer("/".join(headers[f"dlq.{part}"] for part in ("topic", "partition", "offset")), b"", True)
    return Answer(headers[SOURCE_HEADER], message.value() or b"", False)


@contextmanager
def open_shop(model: ModelSettings) -> Iterator[Shop]:
    """A broker, a store and topics of its own. The service's log goes to a file, whose end is said where something fails."""
    with tempfile.TemporaryDirectory(prefix="gpu-log-") as folder:
        log = Path(folder) / "service.log"
        try:
            with logs_in(log), EmbeddedBroker() as broker, EmbeddedStore() as store:
                addresses = demo_settings(bootstrap_servers=broker.bootstrap_servers, redis_url=store.url)
                settings = addresses.model_copy(update={"model": model})
                kafka = settings.kafka
                broker.create_topics([kafka.input_topic, kafka.output_topic, kafka.dead_letter_topic], partitions=PARTITIONS)
                yield Shop(settings)
        except BaseException:
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            sys.stderr.write("".join(f"{line}\n" for line in lines[-_LOG_LINES_SHOWN:]))
            raise


def model_settings(arguments: argparse.Namespace, *, pointer: Path | None = None) -> ModelSettings:
    """The engine that `build_engine` made, or an error: nothing here may quietly run on the CPU."""
    return ModelSettings(
        bundle=arguments.bundle,
        pointer=pointer,
        backend="tensorrt",
        allow_fallback=False,
        engine_cache=arguments.cache,
        engine_build_seconds=0,
    )


def editions(*, covers: bool) -> Iterator[DemoListing]:
    """Without end: the listings that ship, each time under other ids and titles, so that the model runs for every one."""
    shipped = shipped_listings()
    for number in count(1):
        for one in shipped:
            changed = {"listing_id": f"{one.listing_id}-{number}", "title": f"{one.title} ({number})", "version": number}
            yield DemoListing({**one.values, **changed}, one.cover if covers else None)


def shop_parser(description: str | None) -> argparse.ArgumentParser:
    """What both steps are told. SIGTERM unwinds as Ctrl-C does: dying at once would leave broker and store behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp16",), default="fp16")
    return parser
