"""Between bytes and values: change events in, enriched events and dead letters out. Pure: schemas are passed in.

A value is Avro in Confluent framing: a zero byte, the schema's id (4 bytes, big-endian), the record. The record is either a
listing or a Debezium envelope of one (`op`, `before`, `after`). No value at all is a deletion.
Source: Confluent wire format; Debezium "data change events".
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import fastavro

from consumer.predictions import Predictions
from consumer.records import (
    Answer,
    Change,
    CoverUse,
    Enriched,
    InputRecord,
    Outcome,
    OutputRecord,
    Rejected,
    Stage,
)
from consumer.schema_bounds import scaled
from consumer.schemas import ParsedSchema, UnknownSchema
from consumer.task_prediction import avro_long, avro_string
from model.listing import MAX_ID_CHARACTERS, InvalidListing, listing_from_mapping

MAGIC = 0
FRAME = struct.Struct(">bI")
VERSION_HEADER = "version"  # a deletion has no value to carry its version in
SOURCE_HEADER = "enriched.source"  # topic/partition/offset, also on null values
ENRICHED_VERSION_HEADER = "enriched.version"  # of a null value, which cannot hold it; `rebuild` reads it

# What a record takes beside key, value and headers: its batch's frame, the `dlq.*` headers with a reason of some length.
_OVERHEAD_BYTES, _HEADER_BYTES_MAX = 4_096, 10

# Headers are anybody's bytes, and int() refuses texts of thousands of digits.
_INT64 = re.compile(rb"-?[0-9]{1,19}")
_COUNT = re.compile(rb"[0-9]{1,9}")

# What fastavro raises on bytes that are not what the schema says; found by feeding it mutated records.
_NOT_AVRO = (
    EOFError,
    ValueError,  # UnicodeDecodeError among them
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    AttributeError,
    AssertionError,
    struct.error,
    fastavro.read.SchemaResolutionError,
)


class _Undecodable(ValueError):
    """The reason why a record is rejected; never leaves this file."""


def schema_ids(records: Iterable[InputRecord]) -> set[int]:
    """The writer schemas that decoding these records needs."""
    return {
        FRAME.unpack_from(record.value)[1]
        for record in records
        if record.value is not None and len(record.value) >= FRAME.size and record.value[0] == MAGIC
    }


def decode(record: InputRecord, schemas: Mapping[int, ParsedSchema | UnknownSchema]) -> Change | Rejected:
    """Reads one change event.

    Args:
        schemas: what the registry said of each id in `schema_ids([record])`.
    Returns:
        The change, or the record with the reason why it is none.
    """
    try:
        key = None if record.key is None else record.key.decode()
    except UnicodeDecodeError as error:
        return Rejected(record, Stage.DECODE, f"key: expected UTF-8, {error.reason} at byte {error.start}")
    try:
        change = _deletion(record, key) if record.value is None else _change(record, record.value, schemas)
    except (_Undecodable, InvalidListing) as error:
        return Rejected(record, Stage.DECODE, str(error))
    if key is not None and change.listing_id != key:
        reason = f"key and id differ: the key is {key[:80]!r}, listing_id is {change.listing_id[:80]!r}"
        return Rejected(record, Stage.DECODE, reason)
    return change


def _deletion(record: InputRecord, key: str | None) -> Change:
    if not key:
        raise _Undecodable("a deletion (null value) needs the listing id as its key, found none")
    if len(key) > MAX_ID_CHARACTERS:
        raise _Undecodable(f"key: at most {MAX_ID_CHARACTERS} characters, found {len(key)}")
    stated = next((value for name, value in record.headers if name == VERSION_HEADER), None)
    if stated is None:
        return Change(record, key, record.timestamp_ms, None)
    if not _INT64.fullmatch(stated) or not -(2**63) <= int(stated) < 2**63:
        raise _Undecodable(f"header {VERSION_HEADER}: expected a 64-bit integer, found {stated[:40]!r}")
    return Change(record, key, int(stated), None)


def _change(record: InputRecord, value: bytes, schemas: Mapping[int, ParsedSchema | UnknownSchema]) -> Change:
    decoded = _read_avro(value, schemas)
    if "op" in decoded and ("after" in decoded or "before" in decoded):
        return _debezium_change(record, decoded)
    listing = listing_from_mapping(decoded, default_version=record.timestamp_ms)
    return Change(record, listing.listing_id, listing.version, listing)


def _debezium_change(record: InputRecord, envelope: Mapping[str, Any]) -> Change:
    op = envelope["op"]
    if op not in ("c", "u", "r", "d"):
        raise _Undecodable(f"Debezium op: expected c, u, r or d, found {str(op)[:40]!r}")
    side = "before" if op == "d" else "after"
    row = envelope.get(side)
    if not isinstance(row, Mapping):
        raise _Undecodable(f"Debezium op {op!r}: expected a record in {side!r}, found {type(row).__name__}")
    source = envelope.get("source")
    stamps = (source.get("ts_ms") if isinstance(source, Mapping) else None, envelope.get("ts_ms"), record.timestamp_ms)
    changed_at_ms = next(stamp for stamp in stamps if isinstance(stamp, int))
    numbers = {name: _variable_scale(value) for name, value in row.items()}
    listing = listing_from_mapping(numbers, default_version=changed_at_ms)
    return Change(record, listing.listing_id, listing.version, None if op == "d" else listing)


def _variable_scale(value: object) -> object:
    """Debezium's VariableScaleDecimal, which a NUMERIC column without a scale becomes, as a number; anything else as it is."""
    if isinstance(value, Mapping) and isinstance(value.get("scale"), int) and isinstance(value.get("value"), bytes):
        try:
            return scaled(value["value"], value["scale"])
        except ValueError as error:
            raise _Undecodable(str(error)) from error
    return value


def _read_avro(value: bytes, schemas: Mapping[int, ParsedSchema | UnknownSchema]) -> Mapping[str, Any]:
    if len(value) < FRAME.size or value[0] != MAGIC:
        raise _Undecodable(f"not Avro in Confluent framing: expected a zero byte and a schema id, found {value[:5]!r}")
    schema_id: int = FRAME.unpack_from(value)[1]
    schema = schemas[schema_id]
    if isinstance(schema, UnknownSchema):
        raise _Undecodable(f"schema {schema_id}: {schema.reason}")
    stream = io.BytesIO(value)
    stream.seek(FRAME.size)
    try:
        # The writer's schema alone: a shop's own record names and extra fields are welcome, the listing checks the rest.
        decoded = fastavro.schemaless_reader(stream, schema.schema, None)
    except _NOT_AVRO as error:
        reason = f"not a record of schema {schema_id}: {type(error).__name__} {str(error)[:120]}".rstrip()
        raise _Undecodable(reason) from error
    left_over = len(value) - stream.tell()
    if left_over:
        raise _Undecodable(f"not a record of schema {schema_id}: {left_over} bytes are left over after it")
    if not isinstance(decoded, dict):  # not Mapping: asking an abstract class takes as long as reading a field
        raise _Undecodable(f"schema {schema_id}: expected a record, found {type(decoded).__name__}")
    return decoded


def encode(value: Mapping[str, Any], schema: ParsedSchema) -> bytes:
    """Confluent framing of one record."""
    stream = io.BytesIO()
    stream.write(FRAME.pack(MAGIC, schema.schema_id))
    fastavro.schemaless_writer(stream, schema.schema, value)
    return stream.getvalue()


def enriched_record(
    answer: Answer, *, topic: str, schema: ParsedSchema, enriched_at_ms: int, partition: int | None
) -> OutputRecord:
    """The record that answers one input offset: the predictions, or a null value where the listing is gone."""
    record, state = answer.record, answer.state
    value = None
    if isinstance(state, Enriched):
        value = FRAME.pack(MAGIC, schema.schema_id) + _enriched_event(answer, state, enriched_at_ms)
    source = f"{record.topic}/{record.partition}/{record.offset}".encode()
    # A record that was itself enriched elsewhere keeps its headers, but its source is this one's.
    carried = [header for header in record.headers if header[0] not in (SOURCE_HEADER, ENRICHED_VERSION_HEADER)]
    carried.append((SOURCE_HEADER, source))
    if value is None:
        carried.append((ENRICHED_VERSION_HEADER, str(state.version).encode()))
    return OutputRecord(topic, state.listing_id.encode(), value, tuple(carried), partition)


def _enriched_event(answer: Answer, state: Enriched, enriched_at_ms: int) -> bytes:
    """The record `EnrichedListing`, field by field in the order of `schemas/enriched_listing.avsc`.

    By hand, since the predictions are encoded already; fastavro would decode and encode them again for each event.
    """
    record = answer.record
    return b"".join(
        (
            avro_string(state.listing_id),
            avro_long(state.version),
            _OUTCOMES[answer.outcome],
            _COVERS[state.cover],
            Predictions.of(state.predictions).avro,
            _model(state.model, state.model_epoch),
            _topic(record.topic),
            avro_long(record.partition),
            avro_long(record.offset),
            avro_long(enriched_at_ms),
            b"\0" if state.engine is None else b"\2" + avro_string(state.engine),
        )
    )


@lru_cache(maxsize=64)
def _model(model: str, epoch: int) -> bytes:
    name, _, version = model.rpartition("@")
    return avro_string(name) + avro_string(version) + avro_long(epoch)


_topic = lru_cache(maxsize=64)(avro_string)
_OUTCOMES = {outcome: avro_long(index) for index, outcome in enumerate(Outcome)}
_COVERS = {use: avro_long(index) for index, use in enumerate(CoverUse)}


def dead_letter(rejected: Rejected, *, topic: str, bytes_max: int | None = None) -> OutputRecord:
    """The original bytes and headers, with where they stood and why they are here.

    One larger than `bytes_max`, which the broker would refuse for ever, goes without its value: `dlq.truncated` gives that
    one's size and sha256, and the original stands at the position that the headers name. A dead letter that is replayed and
    fails again counts its attempts on; its former `dlq.*` headers are replaced.
    """
    record = rejected.record
    attempts = next((value for name, value in record.headers if name == "dlq.attempts"), None)
    attempt = int(attempts) + 1 if attempts is not None and _COUNT.fullmatch(attempts) else 1
    kept = tuple(header for header in record.headers if not header[0].startswith("dlq."))
    added = {
        "dlq.stage": rejected.stage.value,
        "dlq.reason": rejected.reason,
        "dlq.topic": record.topic,
        "dlq.partition": str(record.partition),
        "dlq.offset": str(record.offset),
        "dlq.timestamp": str(record.timestamp_ms),
        "dlq.attempts": str(attempt),
    }
    value = record.value
    sizes = [len(name) + len(each or b"") + _HEADER_BYTES_MAX for name, each in record.headers]
    if value and bytes_max is not None and len(value) + len(record.key or b"") + sum(sizes) + _OVERHEAD_BYTES > bytes_max:
        added["dlq.truncated"] = f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
        value = b""  # not null, which would be a deletion
    headers = (*kept, *((name, text.encode()) for name, text in added.items()))
    return OutputRecord(topic, record.key, value, headers)
