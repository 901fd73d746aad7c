"""Fills the store from the enriched topic: after a store that lost its data, or for a second one.

Of each listing the newest committed record counts, as the guard ranks them: the highest version, then the highest model
epoch, then the last. Partition after partition is read twice: the first time to learn which record that is (a few hundred
bytes of memory for each listing of the partition), the second time to write those, in batches.

**Safe beside a running service.** A rebuilt update is written only where the store holds nothing or something strictly
below it, in one script call: unlike the service, which may repeat an equal write, a rebuild must not, because what the
service wrote meanwhile at the same version is newer. So the order of the two does not matter, and a rebuild may be stopped
and done again.

**Deletions.** A null value does not carry its version; the header `enriched.version` does, and ranks it like any other. A topic
that an earlier version of the service wrote lacks it. What is known there is a lower bound: the header `version` that the
deletion came with, and the highest version of the listing that stands before it in the topic (the store held no newer one,
or the answer would not be null). The tombstone gets the higher of the two. Too low, it lets a late update below the true
version through; too high, it would refuse the listing's return for ever: so the bound is the safe side. Where neither is
known (a compacted topic, a deletion without the header) there is nothing to guard with, and nothing is written: in an empty
store the listing is absent, which readers take as deleted; in an old copy it stays, so empty the store before.

**What cannot be rebuilt.** The hash of what the model saw is not in the topic: the next change of a listing runs the model,
even where its text is the same. And between the loss and the end of the rebuild a late update finds no guard, here or in
the topic: stop the service for that time where late updates are common.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import fastavro
from confluent_kafka import Message

from consumer.codec import ENRICHED_VERSION_HEADER, FRAME, MAGIC, VERSION_HEADER
from consumer.errors import SettingsError
from consumer.kafka import headers_of
from consumer.prediction_store import PredictionStore
from consumer.records import CoverUse, Enriched, State, Tombstone
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.settings import KafkaSettings
from consumer.task_prediction import Label, TaskPrediction
from consumer.topic_reader import TopicReader

BATCH_RECORDS = 500

Progress = Callable[[int, int], None]  # offsets passed, of how many


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did.

    Attributes:
        written: listings that the store lacked or held an older state of; deletions among them.
        kept: listings of which the store held the same or a newer state.
        unknown: deletions whose version nobody knows; nothing was written.
        records: how many committed records the topic holds.
    """

    written: int = 0
    kept: int = 0
    unknown: int = 0
    records: int = 0

    def __add__(self, other: "Rebuilt") -> "Rebuilt":
        return Rebuilt(
            self.written + other.written,
            self.kept + other.kept,
            self.unknown + other.unknown,
            self.records + other.records,
        )


@dataclass(slots=True)
class _Newest:
    """A listing's newest record so far. `version` is None where only deletions of unknown version were seen."""

    offset: int
    version: int | None
    epoch: int


def rebuild(kafka: KafkaSettings, *, registry: SchemaRegistry, store: PredictionStore, progress: Progress) -> Rebuilt:
    """After it, the store is nowhere below what was committed to the enriched topic when it began.

    Raises:
        DependencyUnavailable: Kafka, the topic, the registry or the store is not there.
        SettingsError: the topic holds what is no enriched event.
    """
    with TopicReader(kafka, kafka.output_topic) as reader:
        total = 2 * sum(end - start for start, end in reader.bounds)
        result, passed = Rebuilt(), 0
        for partition, (start, end) in enumerate(reader.bounds):

            def at(offset: int, passed: int = passed, start: int = start) -> None:
                progress(passed + offset - start, total)

            newest, records = _find_newest(reader, partition, registry, at)
            passed += end - start

            def at_again(offset: int, passed: int = passed, start: int = start) -> None:
                progress(passed + offset - start, total)

            result += replace(_write_newest(reader, partition, registry, store, newest, at_again), records=records)
            passed += end - start
        progress(total, total)
        return result


def _find_newest(
    reader: TopicReader, partition: int, registry: SchemaRegistry, at: Callable[[int], None]
) -> tuple[dict[str, _Newest], int]:
    newest: dict[str, _Newest] = {}
    records = 0
    for offset, message in reader.read(partition):
        records += 1
        at(offset)
        listing_id = _listing_id(message)
        former = newest.get(listing_id)
        value = message.value()
        if value is None and (exact := _stated_version(message, ENRICHED_VERSION_HEADER)) is not None:
            if former is None or former.version is None or exact >= former.version:
                newest[listing_id] = _Newest(offset, exact, 0)
            continue
        if value is None:
            stated = _stated_version(message, VERSION_HEADER)
            known = [one for one in (stated, former.version if former else None) if one is not None]
            newest[listing_id] = _Newest(offset, max(known, default=None), 0)
            continue
        event = _event(value, registry)
        version, epoch = event["version"], event["model_epoch"]
        if former is None or former.version is None or (version, epoch) >= (former.version, former.epoch):
            newest[listing_id] = _Newest(offset, version, epoch)
    return newest, records


def _write_newest(
    reader: TopicReader,
    partition: int,
    registry: SchemaRegistry,
    store: PredictionStore,
    newest: dict[str, _Newest],
    at: Callable[[int], None],
) -> Rebuilt:
    result = Rebuilt()
    states: list[State] = []
    for offset, message in reader.read(partition):
        at(offset)
        listing_id = _listing_id(message)
        found = newest.get(listing_id)
        if found is None or found.offset != offset:
            continue
        value = message.value()
        if value is not None:
            states.append(_enriched(_event(value, registry)))
        elif found.version is not None:
            states.append(Tombstone(listing_id, found.version))
        else:
            result += Rebuilt(unknown=1)
        if len(states) >= BATCH_RECORDS:
            result += _write(store, states)
            states = []
    return result + _write(store, states)


def _write(store: PredictionStore, states: list[State]) -> Rebuilt:
    held = store.write(states, now_ms=time.time_ns() // 1_000_000, only_above=True)
    written = sum(wish is state for wish, state in zip(states, held, strict=True))
    return Rebuilt(written=written, kept=len(states) - written)


def _listing_id(message: Message) -> str:
    return (message.key() or b"").decode()


def _stated_version(message: Message, header: str) -> int | None:
    stated = next((value for name, value in headers_of(message) if name == header), None)
    try:
        return None if stated is None else int(stated)
    except ValueError:
        return None


def _event(value: bytes, registry: SchemaRegistry) -> dict[str, Any]:
    """Raises: SettingsError: it is no enriched event; the topic is another one."""
    if len(value) < FRAME.size or value[0] != MAGIC:
        raise SettingsError("kafka.output_topic: expected enriched events in Confluent framing, found something else")
    schema_id: int = FRAME.unpack_from(value)[1]
    schema = registry.schemas([schema_id])[schema_id]
    if not isinstance(schema, ParsedSchema):
        raise SettingsError(f"kafka.output_topic: schema {schema_id}: {schema.reason}")
    stream = io.BytesIO(value)
    stream.seek(FRAME.size)
    event = fastavro.schemaless_reader(stream, schema.schema, None)
    if not isinstance(event, dict) or "model_epoch" not in event:
        raise SettingsError(f"kafka.output_topic: expected enriched events, found records of schema {schema_id}")
    return event


def _enriched(event: dict[str, Any]) -> Enriched:
    return Enriched(
        listing_id=event["listing_id"],
        version=event["version"],
        content="",  # matches no hash: the next change runs the model
        predictions={task: _prediction(said) for task, said in event["predictions"].items()},
        model=f"{event['model_name']}@{event['model_version']}",
        model_epoch=event["model_epoch"],
        cover=CoverUse(event.get("cover", CoverUse.NONE)),
        engine=event.get("engine"),
    )


def _prediction(said: dict[str, Any]) -> TaskPrediction:
    if said["value"] is not None:
        return TaskPrediction.regression(said["value"], said["low"], said["high"])
    return TaskPrediction.classification(Label(one["label"], one["confidence"]) for one in said["labels"])
