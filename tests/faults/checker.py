"""What must be true of the topics and the store at the end, whatever happened on the way.

Independent of the service: it reads bytes with fastavro and json, and knows the contract, not the code. `check` takes all that
is left of a run and returns what is wrong with it; an empty list is the proof that the run aims at.

    every input offset is answered once: an enriched record, a null value, or a dead letter      lost, doubled, invented
    under its own key, in its own partition, in the order of the input                           misplaced, out of order
    with its own version, or with a newer one of the same listing                                wrong answer, wrong tombstone
    a listing's versions on the enriched topic never go back                                     went back
    the store holds the highest version that was sent, and what the topic's last record says     store is older, store differs
"""

import io
import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import fastavro

_FRAME = struct.Struct(">bI")  # a zero byte and the schema's id, in front of each value
_OF_THE_STORE = ("_version", "_model", "_model_epoch", "_content", "_updated_ms", "_compact")


class Record(Protocol):
    """A record as a `read_committed` reader sees it."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, Any]]: ...
    @property
    def timestamp_ms(self) -> int: ...


@dataclass(frozen=True)
class History:
    """All that is left of a run.

    Attributes:
        store: listing id to its hash in Redis; empty hashes may be left out.
        schemas: parsed Avro schemas by id.
    """

    inputs: Sequence[Record]
    enriched: Sequence[Record]
    dead_letters: Sequence[Record]
    store: Mapping[str, Mapping[str, str]]
    schemas: Mapping[int, Any]


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong. `kind` is a word of this module's docstring."""

    kind: str
    where: str
    found: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.found}"


Position = tuple[int, int]


@dataclass(frozen=True)
class _Change:
    """An input record, understood. `rank` says which of a listing's changes stands: the highest version, deletions first."""

    listing_id: str
    version: int
    deleted: bool

    @property
    def rank(self) -> tuple[int, bool]:
        return self.version, self.deleted


def check(history: History) -> list[Violation]:
    """Everything that is wrong, in the order of this module's docstring."""
    changes = {_position(record): _change(record, history.schemas) for record in history.inputs}
    accepted = {position: change for position, change in changes.items() if change is not None}
    return [
        *_once(history),
        *_in_place(history),
        *_in_order(history),
        *_answers(history, accepted),
        *_dead_letters(history, accepted),
        *_versions(history),
        *_store(history, accepted.values()),
    ]


# ── each input offset once ──────────────────────────────────────────────────────────────────────────────────────


def _once(history: History) -> Iterable[Violation]:
    answers: dict[Position, list[str]] = {_position(record): [] for record in history.inputs}
    for record in history.enriched:
        answers.setdefault(_source(record), []).append(f"enriched {_place(record)}")
    for record in history.dead_letters:
        answers.setdefault(_dead_source(record), []).append(f"dead letter {_place(record)}")
    inputs = {_position(record) for record in history.inputs}
    for position, found in sorted(answers.items()):
        where = f"input {position[0]}/{position[1]}"
        if position not in inputs:
            yield Violation("invented", where, f"there is no such record, and {', '.join(found)}")
        elif not found:
            yield Violation("lost", where, "no answer")
        elif len(found) > 1:
            yield Violation("doubled", where, ", ".join(found))


def _in_place(history: History) -> Iterable[Violation]:
    inputs = {_position(record): record for record in history.inputs}
    for record in history.enriched:
        asked = inputs.get(_source(record))
        if asked is not None and (asked.key, asked.partition) != (record.key, record.partition):
            found = f"answered under key {record.key!r} in partition {record.partition}"
            yield Violation("misplaced", f"input {_place(asked)} with key {asked.key!r}", found)


def _in_order(history: History) -> Iterable[Violation]:
    before: dict[bytes | None, Position] = {}
    for record in _by_place(history.enriched):
        source, former = _source(record), before.get(record.key)
        if former is not None and former[0] == source[0] and source[1] < former[1]:
            yield Violation("out of order", f"enriched {_place(record)}", f"answers {source}, which is before {former}")
        before[record.key] = source


# ── what an answer says ─────────────────────────────────────────────────────────────────────────────────────────


def _answers(history: History, accepted: Mapping[Position, _Change]) -> Iterable[Violation]:
    sent: dict[str, set[tuple[int, bool]]] = defaultdict(set)
    for change in accepted.values():
        sent[change.listing_id].add(change.rank)
    for record in history.enriched:
        where, change = f"enriched {_place(record)}", accepted.get(_source(record))
        if change is None:
            continue  # invented, or it should have been a dead letter: `_dead_letters` says so
        if record.value is None:
            yield from _tombstone(where, change, sent[change.listing_id])
        else:
            yield from _event(where, change, decode(record.value, history.schemas), record, sent[change.listing_id])


def _tombstone(where: str, change: _Change, sent: set[tuple[int, bool]]) -> Iterable[Violation]:
    if not any(deleted and version >= change.version for version, deleted in sent):
        yield Violation("wrong tombstone", where, f"{change.listing_id} was not deleted at version {change.version} or later")


def _event(
    where: str, change: _Change, event: Mapping[str, Any], record: Record, sent: set[tuple[int, bool]]
) -> Iterable[Violation]:
    version = event["version"]
    said = (event["listing_id"], event["source_partition"], event["source_offset"])
    if said != (change.listing_id, *_source(record)):
        yield Violation("wrong answer", where, f"says that it answers {said}")
    if (version, False) not in sent:
        yield Violation("wrong answer", where, f"version {version} of {change.listing_id} was never sent")
    if change.deleted and version <= change.version:
        yield Violation("wrong tombstone", where, f"a deletion at version {change.version} is answered with version {version}")
    if version < change.version:
        yield Violation("wrong answer", where, f"version {change.version} is answered with the older {version}")
    if version > change.version and event["outcome"] != "SUPERSEDED":
        yield Violation("wrong answer", where, f"version {change.version}: {event['outcome']} with version {version}")


def _dead_letters(history: History, accepted: Mapping[Position, _Change]) -> Iterable[Violation]:
    inputs = {_position(record): record for record in history.inputs}
    for record in history.dead_letters:
        original = inputs.get(_dead_source(record))
        if original is None:
            continue  # invented
        if (record.key, record.value) != (original.key, original.value):
            yield Violation("wrong answer", f"dead letter {_place(record)}", "not the original's bytes")
        if _dead_source(record) in accepted:
            yield Violation("wrong answer", f"dead letter {_place(record)}", f"input {_place(original)} is a sound record")
    for record in history.enriched:
        if _source(record) in inputs and _source(record) not in accepted:
            yield Violation("wrong answer", f"enriched {_place(record)}", "its input is no listing: expected a dead letter")


def _versions(history: History) -> Iterable[Violation]:
    highest: dict[bytes | None, int] = {}
    for record in _by_place(history.enriched):
        if record.value is None:
            continue
        version, before = decode(record.value, history.schemas)["version"], highest.get(record.key)
        if before is not None and version < before:
            yield Violation("went back", f"enriched {_place(record)}", f"version {version} of {record.key!r} after {before}")
        highest[record.key] = version


# ── the store ───────────────────────────────────────────────────────────────────────────────────────────────────


def _store(history: History, accepted: Iterable[_Change]) -> Iterable[Violation]:
    stands: dict[str, _Change] = {}
    for change in accepted:
        former = stands.get(change.listing_id)
        stands[change.listing_id] = change if former is None or change.rank >= former.rank else former
    last: dict[str, Record] = {}
    for record in _by_place(history.enriched):
        last[(record.key or b"").decode()] = record

    for listing_id, change in sorted(stands.items()):
        held = history.store.get(listing_id)
        if not held:
            yield Violation("store is older", listing_id, f"nothing is stored; version {change.version} was sent")
            continue
        version, deleted = int(held.get("_version", "0")), "_deleted" in held
        if (version, deleted) < change.rank:
            yield Violation("store is older", listing_id, f"version {version} (deleted: {deleted}), sent: {change.rank}")
        elif (version, deleted) > change.rank:
            yield Violation("store differs", listing_id, f"version {version} (deleted: {deleted}) was never sent")
        if listing_id in last:
            yield from _same_as_topic(listing_id, held, last[listing_id], history.schemas)
    for listing_id in sorted(set(history.store) - set(stands)):
        if history.store[listing_id]:
            yield Violation("store differs", listing_id, "is stored and was never sent")


def _same_as_topic(listing_id: str, held: Mapping[str, str], record: Record, schemas: Mapping[int, Any]) -> Iterable[Violation]:
    where = f"{listing_id}, last answered by {_place(record)}"
    if record.value is None:
        if set(held) != {"_version", "_deleted"}:
            yield Violation("wrong tombstone", where, f"the topic ends with a deletion, the store holds {sorted(held)}")
        return
    event = decode(record.value, schemas)
    if "_deleted" in held:
        yield Violation("wrong tombstone", where, f"the store says deleted, the topic version {event['version']}")
        return
    wanted = {
        "_version": str(event["version"]),
        "_model": f"{event['model_name']}@{event['model_version']}",
        "_model_epoch": str(event["model_epoch"]),
    }
    for name, value in wanted.items():
        if held.get(name) != value:
            yield Violation("store differs", where, f"{name} is {held.get(name)}, in the topic {value}")
    tasks = {name: json.loads(value) for name, value in held.items() if name not in _OF_THE_STORE}
    if tasks != {task: _as_stored(prediction) for task, prediction in event["predictions"].items()}:
        yield Violation("store differs", where, "its predictions are not those of the topic")


def _as_stored(prediction: Mapping[str, Any]) -> dict[str, Any]:
    if prediction["value"] is None:
        return {"labels": prediction["labels"]}
    return {name: prediction[name] for name in ("value", "low", "high")}


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────


def schema_id(value: bytes | None) -> int | None:
    """The id of the schema that a value was written with; None where it is not framed."""
    return _FRAME.unpack_from(value)[1] if value is not None and len(value) >= _FRAME.size and value[0] == 0 else None


def _change(record: Record, schemas: Mapping[int, Any]) -> _Change | None:
    """None for a record that is no listing."""
    if record.value is None:
        stated = _header(record, "version")
        return _Change((record.key or b"").decode(), int(stated) if stated else record.timestamp_ms, True)
    if schema_id(record.value) not in schemas:
        return None
    try:
        listing = decode(record.value, schemas)
    except (EOFError, LookupError, ValueError):
        return None
    version = listing["version"]
    return _Change(listing["listing_id"], record.timestamp_ms if version is None else version, False)


def decode(value: bytes, schemas: Mapping[int, Any]) -> dict[str, Any]:
    """A framed Avro record with the schema it was written with."""
    found = schema_id(value)
    assert found is not None
    decoded = fastavro.schemaless_reader(io.BytesIO(value[_FRAME.size :]), schemas[found], None)
    assert isinstance(decoded, dict)
    return decoded


def _by_place(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=_position)


def _position(record: Record) -> Position:
    return record.partition, record.offset


def _place(record: Record) -> str:
    return f"{record.partition}/{record.offset}"


def _source(record: Record) -> Position:
    _, partition, offset = _header(record, "enriched.source").rsplit("/", 2)
    return int(partition), int(offset)


def _dead_source(record: Record) -> Position:
    return int(_header(record, "dlq.partition")), int(_header(record, "dlq.offset"))


def _header(record: Record, name: str) -> str:
    """The last of that name; "" where there is none."""
    return next((value.decode() for key, value in reversed(record.headers) if key == name), "")
