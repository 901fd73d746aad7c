"""What becomes of a change event's bytes, good or bad, and which bytes an answer and a dead letter have."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import codec
from consumer.records import Answer, Change, InputRecord, Outcome, Rejected, Stage
from consumer.schema_registry import ParsedSchema, UnknownSchema
from model.listing import Listing
from tests.examples import (
    ENRICHED_SCHEMA,
    ENVELOPE_SCHEMA,
    FOREIGN_SCHEMA,
    LISTING_SCHEMA,
    V1_SCHEMA,
    a_change_event,
    a_chinese_novel,
    a_debezium_event,
    a_deletion,
    a_jpeg_cover,
    a_schema,
    a_used_hardback,
    an_entry,
    an_input_record,
    as_avro,
)

UNKNOWN_ID, TEXT_ID, LOOSE_ID = 404, 6, 7
# One record of each type that a listing's field may wrongly have.
LOOSE_SCHEMA = a_schema(
    LOOSE_ID,
    {
        "type": "record",
        "name": "Loose",
        "fields": [
            {"name": "listing_id", "type": ["null", "string", "long"]},
            {"name": "title", "type": ["null", "string", "double"]},
            {"name": "authors", "type": ["null", "string", {"type": "array", "items": ["string", "long"]}]},
            {"name": "price", "type": ["null", "string", "double"]},
            {"name": "page_count", "type": ["null", "string", "double"]},
        ],
    },
)
# The types that decode to more than numbers and texts, each with bytes that it cannot be.
LOGICAL_SCHEMA = a_schema(
    9,
    {
        "type": "record",
        "name": "Logical",
        "fields": [
            {"name": "listing_id", "type": "string"},
            {"name": "at_ms", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "row", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
            {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 4}},
        ],
    },
)
LOGICAL = codec.encode(
    {
        "listing_id": "k",
        "at_ms": datetime(2024, 1, 1, tzinfo=UTC),
        "day": date(2024, 1, 1),
        "time": time(12),
        "price": Decimal("8.50"),
        "row": UUID(int=7),
        "kind": "A",
        "digest": b"1234",
    },
    LOGICAL_SCHEMA,
)
SCHEMAS: dict[int, ParsedSchema | UnknownSchema] = {
    one.schema_id: one
    for one in (
        LISTING_SCHEMA,
        ENVELOPE_SCHEMA,
        ENRICHED_SCHEMA,
        V1_SCHEMA,
        FOREIGN_SCHEMA,
        LOOSE_SCHEMA,
        LOGICAL_SCHEMA,
        a_schema(TEXT_ID, '"string"'),
        UnknownSchema(UNKNOWN_ID, "the registry has no schema 404: Schema not found"),
    )
}
EMPTY = {"listing_id": "bd-1", "title": None, "authors": None, "price": None, "page_count": None}


def decode(record: InputRecord) -> Change | Rejected:
    return codec.decode(record, SCHEMAS)


def loose(**fields: Any) -> bytes:
    return codec.encode({**EMPTY, **fields}, LOOSE_SCHEMA)


def framed(schema_id: int, body: bytes) -> bytes:
    return codec.FRAME.pack(codec.MAGIC, schema_id) + body


def without_side(op: str) -> bytes:
    value = a_debezium_event(op).value
    assert value is not None
    return value


# ── good events ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("listing", [a_used_hardback(), a_chinese_novel(), Listing("x", 1, cover=a_jpeg_cover())])
def test_a_listing_is_read_as_it_was_written(listing: Listing) -> None:
    """A listing is read field for field as its producer wrote it, cover bytes and Chinese included."""
    record = a_change_event(listing)
    assert decode(record) == Change(record, listing.listing_id, listing.version, listing)


def test_a_listing_without_a_key_is_read() -> None:
    """A record without a key is read: its value names the listing."""
    record = an_input_record(as_avro(a_used_hardback()), key=None)
    assert decode(record) == Change(record, "bd-1", 17, a_used_hardback())


def test_a_v1_event_is_read() -> None:
    """An event of an older schema is read; the fields that came later are absent, the version is the record's time."""
    record = an_input_record(codec.encode({"listing_id": "bd-1", "title": "Emma"}, V1_SCHEMA), timestamp_ms=77)
    assert decode(record) == Change(record, "bd-1", 77, Listing("bd-1", 77, title="Emma"))


def test_a_shops_own_schema_is_read() -> None:
    """A schema with another record name and more fields is read; what a listing does not have is left out."""
    row = {"warehouse": {"Kiel": 4}, "title": "Buddenbrooks", "price": 12.5, "listing_id": "k-1", "discontinued": False}
    record = an_input_record(codec.encode(row, FOREIGN_SCHEMA), key=b"k-1", timestamp_ms=9)
    assert decode(record) == Change(record, "k-1", 9, Listing("k-1", 9, title="Buddenbrooks", price=12.5))


@pytest.mark.parametrize("op", ["c", "u", "r"])
def test_debezium_changes_give_the_after_side(op: str) -> None:
    """A Debezium create, update or snapshot read is the listing as it is afterwards."""
    record = a_debezium_event(op, before=a_used_hardback(price=1.0), after=a_used_hardback(), version=21)
    assert decode(record) == Change(record, "bd-1", 21, a_used_hardback(version=21))


def test_a_debezium_delete_deletes() -> None:
    """A Debezium delete is a deletion of the listing that was there before."""
    record = a_debezium_event("d", before=a_used_hardback(), version=21)
    assert decode(record) == Change(record, "bd-1", 21, None)


@pytest.mark.parametrize(
    ("record", "version"),
    [
        (a_change_event(a_used_hardback(version=-5)), -5),
        (a_debezium_event("u", after=a_used_hardback(), version=21, source_ts_ms=5, ts_ms=6), 21),
        (a_debezium_event("u", after=a_used_hardback(), source_ts_ms=5, ts_ms=6), 5),
        (a_debezium_event("d", before=a_used_hardback(), source_ts_ms=5, ts_ms=6), 5),
        (a_deletion(version=12), 12),
        (a_deletion(version=-(2**63)), -(2**63)),
        (a_deletion(timestamp_ms=13), 13),
        (an_input_record(None, headers=(("version", None),), timestamp_ms=14), 14),
    ],
)
def test_where_the_version_comes_from(record: InputRecord, version: int) -> None:
    """The version is the listing's own, else the time of the change in the source, else the record's; a deletion has a header."""
    decoded = decode(record)
    assert isinstance(decoded, Change), decoded
    assert decoded.version == version


def test_a_debezium_envelope_without_source_time_has_the_connectors() -> None:
    """An envelope whose source says no time counts as of the connector's time, else of the record's."""
    row = {"type": "record", "name": "Row", "fields": [{"name": "listing_id", "type": "string"}]}
    fields = [{"name": "op", "type": "string"}, {"name": "after", "type": row}, {"name": "ts_ms", "type": ["null", "long"]}]
    schema = a_schema(8, {"type": "record", "name": "Envelope", "fields": fields})
    for ts_ms, version in ((44, 44), (None, 55)):
        value = codec.encode({"op": "c", "after": {"listing_id": "bd-1"}, "ts_ms": ts_ms}, schema)
        record = an_input_record(value, timestamp_ms=55)
        assert codec.decode(record, {8: schema}) == Change(record, "bd-1", version, Listing("bd-1", version))


@pytest.mark.parametrize(
    ("scale", "number", "price"),
    [(2, (850).to_bytes(2, "big"), 8.5), (0, b"\x09", 9.0), (-1, b"\x02", 20.0), (1001, b"\x02", None), (2, bytes(65), None)],
)
def test_a_number_whose_scale_travels_with_it_is_a_number(scale: int, number: bytes, price: float | None) -> None:
    """Debezium's VariableScaleDecimal, for a NUMERIC column without a scale; one that would take long to read is rejected."""
    fields = [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}]
    kind = {"type": "record", "name": "VariableScaleDecimal", "namespace": "io.debezium.data", "fields": fields}
    row = {"type": "record", "name": "Row", "fields": [{"name": "listing_id", "type": "string"}, {"name": "price", "type": kind}]}
    envelope = {"type": "record", "name": "E", "fields": [{"name": "op", "type": "string"}, {"name": "after", "type": row}]}
    schema = a_schema(8, envelope)
    after = {"listing_id": "bd-1", "price": {"scale": scale, "value": number}}
    decoded = codec.decode(an_input_record(codec.encode({"op": "c", "after": after}, schema)), {8: schema})
    found = decoded.listing.price if isinstance(decoded, Change) and decoded.listing else None
    assert found == price
    assert isinstance(decoded, Rejected) == (price is None)


def test_a_null_value_deletes() -> None:
    """A null value deletes the listing that the key names."""
    record = a_deletion("db-2", version=4)
    assert decode(record) == Change(record, "db-2", 4, None)


def test_the_ids_that_a_batch_needs_are_those_in_its_frames() -> None:
    """Schemas are asked for by the ids in front of the records; what is no frame asks for none."""
    values = [as_avro(a_used_hardback()), None, b"", b"\x00\x00", b"{}{}{}", framed(4_000_000_000, b"")]
    assert codec.schema_ids([an_input_record(value) for value in values]) == {1, 4_000_000_000}


# ── bad events ──────────────────────────────────────────────────────────────────────────────────────────────────

WHOLE = as_avro(a_used_hardback())
BROKEN_TITLE = WHOLE.replace(b"A Brief", b"\xff Brief")
LONG = Listing("bd-1", title="x" * 10_000_000)
BAD: dict[str, tuple[InputRecord, str]] = {
    "empty value": (an_input_record(b""), "not Avro in Confluent framing: expected a zero byte and a schema id, found b''"),
    "JSON": (
        an_input_record(b'{"listing_id": "bd-1"}'),
        "not Avro in Confluent framing: expected a zero byte and a schema id, found b'{\"lis'",
    ),
    "half a frame": (
        an_input_record(b"\x00\x00\x00\x00"),
        "not Avro in Confluent framing: expected a zero byte and a schema id, found b'\\x00\\x00\\x00\\x00'",
    ),
    "unknown schema id": (
        an_input_record(framed(UNKNOWN_ID, b"x")),
        "schema 404: the registry has no schema 404: Schema not found",
    ),
    "not a record": (an_input_record(framed(TEXT_ID, b"\x02a")), "schema 6: expected a record, found str"),
    "truncated": (an_input_record(WHOLE[:40]), "not a record of schema 1: EOFError Expected 57 bytes, read 26"),
    "no body": (an_input_record(framed(1, b"")), "not a record of schema 1: EOFError"),
    "trailing bytes": (an_input_record(WHOLE + b"xyz"), "not a record of schema 1: 3 bytes are left over after it"),
    "union branch": (an_input_record(framed(1, b"\x08bd-1\x0e")), "not a record of schema 1: IndexError"),
    "invalid UTF-8 in the value": (an_input_record(BROKEN_TITLE), "not a record of schema 1: UnicodeDecodeError"),
    "invalid UTF-8 in the key": (an_input_record(WHOLE, key=b"bd-\xff"), "key: expected UTF-8, invalid start byte at byte 3"),
    "invalid UTF-8 in a deletion's key": (an_input_record(None, key=b"\xe4"), "key: expected UTF-8, unexpected end of data at"),
    "key and id differ": (
        an_input_record(WHOLE, key=b"bd-2"),
        "key and id differ: the key is 'bd-2', listing_id is 'bd-1'",
    ),
    "empty key": (an_input_record(WHOLE, key=b""), "key and id differ: the key is '', listing_id is 'bd-1'"),
    "missing id": (an_input_record(loose(listing_id=None)), "listing_id: expected a non-empty string, found nothing"),
    "empty id": (an_input_record(as_avro(Listing(""))), "listing_id: expected a non-empty string, found str ''"),
    "long id": (an_input_record(as_avro(Listing("i" * 513))), "listing_id: at most 512 characters, found 513"),
    "id of another type": (an_input_record(loose(listing_id=7)), "listing_id: expected a non-empty string, found int 7"),
    "wrong type of title": (an_input_record(loose(title=1.5)), "title: expected a string or null, found float 1.5"),
    "wrong type of authors": (
        an_input_record(loose(authors="Hawking")),
        "authors: expected a list of strings or null, found str 'Hawking'",
    ),
    "wrong type of an author": (an_input_record(loose(authors=["A", 1])), "authors: expected strings, found int 1"),
    "wrong type of price": (an_input_record(loose(price="8.50")), "price: expected a number or null, found str '8.50'"),
    "broken page count": (an_input_record(loose(page_count=1.5)), "page_count: expected an integer or null, found float 1.5"),
    "NaN price": (an_input_record(loose(price=float("nan"))), "price: expected a finite number, found float nan"),
    "infinite price": (an_input_record(loose(price=float("-inf"))), "price: expected a finite number, found float -inf"),
    "10 MB title": (an_input_record(as_avro(LONG)), "title: at most 10000 characters, found 10000000"),
    "unknown Debezium op": (
        a_debezium_event("t", after=a_used_hardback()),
        "Debezium op: expected c, u, r or d, found 't'",
    ),
    "created without after": (
        an_input_record(without_side("c")),
        "Debezium op 'c': expected a record in 'after', found NoneType",
    ),
    "deleted without before": (
        an_input_record(without_side("d")),
        "Debezium op 'd': expected a record in 'before', found NoneType",
    ),
    "delete without key": (
        an_input_record(None, key=None),
        "a deletion (null value) needs the listing id as its key, found none",
    ),
    "delete with empty key": (
        an_input_record(None, key=b""),
        "a deletion (null value) needs the listing id as its key, found none",
    ),
    "delete with long key": (an_input_record(None, key=b"k" * 513), "key: at most 512 characters, found 513"),
    "delete with a version of words": (
        an_input_record(None, headers=(("version", b"newest"),)),
        "header version: expected a 64-bit integer, found b'newest'",
    ),
    "delete with too large a version": (
        an_input_record(None, headers=(("version", b"9223372036854775808"),)),
        "header version: expected a 64-bit integer, found b'9223372036854775808'",
    ),
}


@pytest.mark.parametrize(("record", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_rejected_with_a_reason(record: InputRecord, reason: str) -> None:
    """A bad record becomes a rejected one of stage decode, whose reason names what was expected and what was found."""
    rejected = decode(record)
    assert isinstance(rejected, Rejected)
    assert (rejected.record, rejected.stage) == (record, Stage.DECODE)
    assert rejected.reason.startswith(reason)
    assert len(rejected.reason) < 300, "a reason fits a header, whatever the record holds"


@pytest.mark.parametrize("event", [WHOLE, a_debezium_event("u", after=a_chinese_novel()).value])
def test_no_part_of_a_record_passes_for_a_whole_one(event: bytes) -> None:
    """However a record is cut short, it is rejected."""
    for end in range(len(event)):
        assert isinstance(decode(an_input_record(event[:end], key=None)), Rejected), end


def assert_answered(record: InputRecord) -> None:
    """`decode` returned, and what it says can be written down."""
    known = dict(SCHEMAS)
    for schema_id in codec.schema_ids([record]):
        known.setdefault(schema_id, UnknownSchema(schema_id, "not known"))
    decoded = codec.decode(record, known)
    if isinstance(decoded, Rejected):
        codec.dead_letter(decoded, topic="dead")
        return
    answer = Answer(record, Outcome.PREDICTED, an_entry(decoded.listing_id, version=decoded.version))
    codec.enriched_record(answer, topic="out", schema=ENRICHED_SCHEMA, enriched_at_ms=1, partition=None)


some_headers = st.lists(
    st.tuples(st.sampled_from(["version", "dlq.attempts", "x"]), st.none() | st.binary(max_size=30)), max_size=3
).map(tuple)
# A schema and bytes behind it: most fail deep inside the decoder, which is what this is about.
frames = st.builds(framed, st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 404, 99]), st.binary(max_size=200))


@settings(max_examples=1_500, deadline=None)
@given(key=st.none() | st.binary(max_size=20), value=st.none() | st.binary(max_size=50) | frames, headers=some_headers)
def test_arbitrary_bytes_are_answered(key: bytes | None, value: bytes | None, headers: Any) -> None:
    """Whatever bytes come, the record is a change or a rejected one, never an exception."""
    assert_answered(an_input_record(value, key=key, headers=headers))


WHOLE_EVENTS = [
    WHOLE,
    as_avro(a_chinese_novel()),
    as_avro(Listing("bd-1", cover=a_jpeg_cover(size=(8, 8)))),
    a_debezium_event("u", before=a_used_hardback(), after=a_chinese_novel(), source_ts_ms=5).value,
    a_debezium_event("d", before=a_used_hardback()).value,
    codec.encode({"warehouse": {"Kiel": 4}, "title": "t", "price": 1.5, "listing_id": "k", "discontinued": True}, FOREIGN_SCHEMA),
    loose(authors=["A", 1]),
    LOGICAL,
    LOGICAL,
]


@settings(max_examples=3_000, deadline=None)
@given(data=st.data())
def test_mutated_records_are_answered(data: st.DataObject) -> None:
    """A valid record with bytes changed, put in or left out is a change or a rejected record, never an exception."""
    value = bytearray(data.draw(st.sampled_from(WHOLE_EVENTS)))  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(codec.FRAME.size, len(value) - 1))
        piece = data.draw(st.binary(max_size=10) | st.sampled_from([b"\xff" * 9 + b"\x7f", b"\x01", b"\xfe\xff\xff\x0f"]))
        value[at : at + data.draw(st.integers(0, 3))] = piece
        if len(value) <= codec.FRAME.size:
            break
    assert_answered(an_input_record(bytes(value), key=None))
