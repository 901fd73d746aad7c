"""The commands. Each does one thing; `--help` teaches it with an example."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from consumer import dead_letters, last_words, predict, settings
from consumer.errors import DependencyUnavailable, EnricherError
from consumer.telemetry import configure_logging

log = structlog.get_logger("consumer")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Enriches book listings: change events in, predictions to Redis, enriched events out.\n\n"
    "Exit codes: 0 done, 1 unexpected, 2 wrong usage or settings, 3 a dependency was not there, 4 circuit breaker.",
)
letters = typer.Typer(no_args_is_help=True, help="What could not be enriched, and putting it back once the cause is gone.")
app.add_typer(letters, name="dead-letters")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; environment variables CONSUMER_<SECTION>__<NAME> go over it."),
]
CoversOption = Annotated[Path | None, typer.Option("--covers", help="Folder or zip of the images that `cover` names.")]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, one listing each; - reads standard input.")]


def _load(config: Path | None, *, command: bool = True) -> settings.Settings:
    """Settings, with logs as they say; a command that prints results logs only warnings, to standard error."""
    loaded = settings.load_settings(config, os.environ)
    if command:
        configure_logging("warning", "console")
    else:
        configure_logging(loaded.log.level, loaded.log.format)
    return loaded


def _print(line: str) -> None:
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `consumer predict … | head` has enough; left to typer, it would be exit code 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """A line on standard error while something long runs; results on standard output stay clean."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


@app.command()
def run(config: Config = None) -> None:
    """The service: reads change events until SIGTERM, then finishes what is in flight and leaves the group.

    SIGHUP looks whether another model is wanted.

    Example: CONSUMER_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 python -m consumer run --config settings.toml
    """
    from consumer.service import Service

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loaded: settings.Settings | None = None
    try:
        loaded = _load(config, command=False)
        service = Service(loaded)
        signal.signal(signal.SIGHUP, lambda *_: service.reload())
        service.run(stop)
    except Exception as error:
        file = loaded.log.termination_file if loaded else last_words.DEFAULT_FILE
        last_words.leave(f"{type(error).__name__}: {error}", file)
        if loaded and isinstance(error, EnricherError):
            log.error("stopped", error=type(error).__name__, reason=str(error), exit_code=error.exit_code)
        raise


@app.command()
def demo(
    listings: Annotated[Path | None, typer.Option(help="JSON lines of your own listings instead of those that ship.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop after this long, with what is done by then.")] = None,
) -> None:
    """Broker, store, producer and service in one process, then a summary. Needs no Docker, no GPU and nothing set up.

    Example: python -m consumer demo --listings my-listings.jsonl
    """
    from consumer.demo.command import run_demo

    configure_logging("error", "console")
    raise typer.Exit(run_demo(listings=listings, seconds=seconds, console=Console()))


@app.command("predict")
def predict_command(
    file: FileArgument,
    bundle: Annotated[Path | None, typer.Option(help="The model bundle; default: the setting model.bundle.")] = None,
    covers: CoversOption = None,
    config: Config = None,
) -> None:
    """Predicts without Kafka and Redis: JSON lines in, JSON lines out, in the same order.

    Example: echo '{"listing_id": "a-1", "title": "A Brief History of Time"}' | python -m consumer predict -
    """
    from consumer.listing_files import read_listings
    from consumer.serving import open_predictor

    chosen = _load(config)
    if bundle is not None:
        chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"bundle": bundle, "pointer": None})})
    with closing(open_predictor(chosen)) as predictor:
        lines = read_listings(file, covers=covers)
        for document in predict.predict_lines(lines, predictor, now_ms=_now_ms(), batch=chosen.batch.max_records):
            _print(predict.as_json_line(document))


@app.command()
def publish(file: FileArgument, covers: CoversOption = None, config: Config = None) -> None:
    """Sends JSON lines as change events to the input topic; {"listing_id": "a-1", "deleted": true} deletes.

    Example: python -m consumer publish --covers covers.zip listings.jsonl
    """
    from consumer.listing_files import read_listings
    from consumer.publish import Publisher
    from consumer.schema_registry import SchemaRegistry
    from model.listing import InvalidListing, listing_from_mapping

    chosen = _load(config)
    publisher = Publisher(chosen, SchemaRegistry(chosen.schema_registry.url, chosen.schema_registry.properties))
    sent, bad = 0, 0
    with _progress(f"publishing {file}"):
        for line in read_listings(file, covers=covers):
            try:
                if line.error is not None:
                    raise InvalidListing(line.error)
                if line.values.get("deleted"):
                    gone = listing_from_mapping(line.values, default_version=0)
                    publisher.delete(gone.listing_id, None if line.values.get("version") is None else gone.version)
                else:
                    publisher.publish(line.values, line.cover)
                sent += 1
            except InvalidListing as error:
                bad += 1
                log.error("line_not_sent", where=line.where, reason=str(error))
        publisher.flush()
    _print(f"{sent} events sent to {chosen.kafka.input_topic}" + (f", {bad} lines were no listings" if bad else ""))
    raise typer.Exit(2 if bad else 0)


@app.command()
def get(listing_ids: Annotated[list[str], typer.Argument(metavar="LISTING_ID...")], config: Config = None) -> None:
    """What the store holds of these listings, as JSON lines.

    Example: python -m consumer get bd-1 bd-2
    """
    from consumer.prediction_json import state_document
    from consumer.prediction_store import open_store

    store = open_store(_load(config).redis)
    for listing_id, state in zip(listing_ids, store.read(listing_ids), strict=True):
        _print(predict.as_json_line(state_document(listing_id, state)))
    store.close()


@app.command()
def rebuild(config: Config = None) -> None:
    """Fills the store from the enriched topic, e.g. after it lost its data. Safe beside the running service.

    Example: python -m consumer rebuild --config settings.toml
    """
    from consumer.prediction_store import open_store
    from consumer.rebuild import rebuild as fill
    from consumer.schema_registry import SchemaRegistry

    chosen = _load(config)
    store, registry = open_store(chosen.redis), SchemaRegistry(chosen.schema_registry.url, chosen.schema_registry.properties)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {chosen.kafka.output_topic}", total=None)
        done = fill(
            chosen.kafka,
            registry=registry,
            store=store,
            progress=lambda passed, total: bar.update(task, completed=passed, total=total),
        )
    store.close()
    registry.close()
    unknown = f", {done.unknown} deletions of unknown version left out" if done.unknown else ""
    _print(f"{done.records} records read: {done.written} listings written, {done.kept} kept as they were{unknown}")


@app.command()
def doctor(config: Config = None) -> None:
    """Checks every setting and dependency, one line each; exit code 2 or 3 when one fails.

    Example: python -m consumer doctor --config settings.toml
    """
    from consumer.doctor import examine

    worst = 0
    for finding in examine(_load(config)):
        worst = max(worst, finding.exit_code)
        _print(f"{'ok  ' if finding.exit_code == 0 else 'FAIL'} {finding.subject}: {finding.detail}")
    raise typer.Exit(worst)


Stage = Annotated[str | None, typer.Option(help="Only those of this stage: decode, cover, features, inference, trial.")]
Reason = Annotated[str | None, typer.Option(help="Only those whose reason contains this text.")]
Since = Annotated[int | None, typer.Option(help="Only originals from this time on, in ms since the epoch.")]
Until = Annotated[int | None, typer.Option(help="Only originals before this time, in ms since the epoch.")]


@letters.command("list")
def list_letters(
    stage: Stage = None, reason: Reason = None, since: Since = None, until: Until = None, config: Config = None
) -> None:
    """Where and why, one JSON line each.

    Example: python -m consumer dead-letters list --stage decode --reason 'key and id'
    """
    chosen = dead_letters.Filter(stage, reason, since, until)
    for letter in dead_letters.read_dead_letters(_load(config).kafka, chosen):
        _print(dead_letters.as_json_line(letter, whole=False))


@letters.command("show")
def show_letter(
    position: Annotated[str, typer.Argument(help="PARTITION/OFFSET as `list` prints it.")], config: Config = None
) -> None:
    """One dead letter with its headers and its value in hex.

    Example: python -m consumer dead-letters show 0/17
    """
    chosen = dead_letters.Filter(position=position)
    found = list(dead_letters.read_dead_letters(_load(config).kafka, chosen))
    for letter in found:
        _print(dead_letters.as_json_line(letter, whole=True))
    if not found:
        raise typer.BadParameter(f"no dead letter at {position}; `dead-letters list` shows the positions")


@letters.command("replay")
def replay_letters(
    stage: Stage = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    position: Annotated[str | None, typer.Option(help="Only the one at PARTITION/OFFSET.")] = None,
    config: Config = None,
) -> None:
    """Puts the original bytes back on the input topic; the dead letters stay where they are.

    Example: python -m consumer dead-letters replay --reason 'no schema'
    """
    chosen = dead_letters.Filter(stage, reason, since, until, position)
    kafka = _load(config).kafka
    with _progress("replaying"):
        count = dead_letters.replay(kafka, chosen)
    _print(f"{count} records put back on {kafka.input_topic}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> NoReturn:
    """Runs a command; an error of ours becomes one line on standard error and its exit code."""
    try:
        app()
    except EnricherError as error:
        is_away = isinstance(error, DependencyUnavailable)
        hint = "; `python -m consumer doctor` looks at every dependency" if is_away else ""
        sys.stderr.write(f"{type(error).__name__}: {error}{hint}\n")
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    main()
