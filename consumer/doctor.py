"""`consumer doctor`: each setting and dependency looked at once, one line each."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from consumer.errors import EnricherError
from consumer.kafka import message_bytes_max, partition_counts
from consumer.prediction import read_extractor
from consumer.prediction_store import open_store
from consumer.schema_registry import SchemaRegistry
from consumer.schemas import ENRICHED_LISTING, LISTING
from consumer.serving import load_bundle, read_wanted
from consumer.settings import Settings

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `exit_code` is 0 when all is well, 2 for a wrong setting, 3 for an absent dependency."""

    subject: str
    detail: str
    exit_code: int = 0


def examine(settings: Settings) -> Iterator[Finding]:
    """Looks at everything that `consumer run` needs. Changes nothing, registers nothing."""
    for section, values in settings.model_dump(mode="json").items():
        shown = ", ".join(f"{name}={_shown(name, value)}" for name, value in values.items())
        yield Finding(f"settings.{section}", shown)
    yield _ask("model.bundle", lambda: _bundle(settings))
    yield _ask("redis", lambda: _redis(settings))
    yield _ask("schema_registry", lambda: _registry(settings))
    yield from _topics(settings)


def _shown(name: str, value: object) -> str:
    if name == "url":  # may hold a password; of Redis's, pydantic shows nothing already
        return re.sub(r"//[^/@,]*@", "//**********@", str(value))
    if name == "properties" and isinstance(value, dict):  # may hold secrets: their names must do
        return "{" + ", ".join(sorted(value)) + "}"
    return str(value)


def _ask(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, look())
    except EnricherError as error:
        return Finding(subject, str(error), error.exit_code)


def _bundle(settings: Settings) -> str:
    wanted = read_wanted(settings.model)
    bundle = load_bundle(settings.model, wanted)
    read_extractor(bundle)
    manifest = bundle.manifest
    epoch = manifest.epoch if wanted.epoch is None else wanted.epoch
    return f"{manifest.label}, epoch {epoch}, {len(manifest.tasks)} tasks, every file as the manifest says"


def _redis(settings: Settings) -> str:
    store = open_store(settings.redis, socket_timeout_s=TIMEOUT_S)
    try:
        store.check()
    finally:
        store.close()
    return "answers, and lets its user do what the service does"


def _registry(settings: Settings) -> str:
    registry = SchemaRegistry(settings.schema_registry.url, settings.schema_registry.properties)
    try:
        registry.ping()
        registry.check_compatible(f"{settings.kafka.input_topic}-value", LISTING)
        registry.check_compatible(f"{settings.kafka.output_topic}-value", ENRICHED_LISTING)
    finally:
        registry.close()
    return "answers; the schemas of this version can be registered"


def _topics(settings: Settings) -> Iterator[Finding]:
    kafka = settings.kafka
    try:
        counts = partition_counts(kafka, timeout_s=TIMEOUT_S)
    except EnricherError as error:
        yield Finding("kafka", str(error), error.exit_code)
        return
    yield Finding("kafka", f"answers, {len(counts)} topics")
    for name in ("input_topic", "output_topic", "dead_letter_topic"):
        topic = getattr(kafka, name)
        if topic in counts:
            yield Finding(f"kafka.{name}", f"{topic}, {counts[topic]} partitions")
        else:
            yield Finding(f"kafka.{name}", f"expected the topic {topic}, it is not there", 3)
    if kafka.output_topic in counts and counts.get(kafka.input_topic) != counts[kafka.output_topic]:
        detail = f"expected as many partitions as {kafka.input_topic}, found {counts[kafka.output_topic]}"
        yield Finding("kafka.output_topic", detail, 2)
    sizes = message_bytes_max(kafka, (kafka.input_topic, kafka.dead_letter_topic), timeout_s=TIMEOUT_S)
    if (found := sizes.get(kafka.dead_letter_topic, 0)) < (expected := sizes.get(kafka.input_topic, 0)):
        yield Finding("kafka.dead_letter_topic", f"expected max.message.bytes of {expected} or more, found {found}", 2)
