"""A few bytes and a registered schema cannot claim the process's memory or time."""

import io
import json
import resource
import time
from decimal import Decimal
from typing import Any

import fastavro
import pytest

from consumer import codec
from consumer.records import Change, Rejected
from consumer.schema_registry import ParsedSchema, UnknownSchema
from tests.consumer.test_schema_recursion import read, record
from tests.examples import a_schema, an_input_record

NOTHING = {"type": "fixed", "name": "Nothing", "size": 0}
EMPTY = {"type": "record", "name": "Empty", "fields": []}
# Each level holds ten of the level below: a hundred million nulls, and not one byte.
LEVELS: dict[str, Any] = record("L0", **{f"f{number}": "null" for number in range(10)})
for depth in range(1, 8):
    LEVELS = record(f"L{depth}", f0=LEVELS, **{f"f{number}": f"L{depth - 1}" for number in range(1, 10)})
FREE = {
    "an array of nulls": {"type": "array", "items": "null"},
    "an array of nothing": {"type": "array", "items": NOTHING},
    "an array of empty records": {"type": "array", "items": EMPTY},
    "an array of few bytes and many nulls": {"type": "array", "items": record("R", a="int", b="null")},
    "a map of many nulls": {"type": "map", "values": record("R", a="null", b="null")},
    "an array in a field's union": record("R", a=["null", {"type": "array", "items": "null"}]),
    "records of records of nulls": LEVELS,
}


@pytest.mark.parametrize("schema", FREE.values(), ids=FREE.keys())
def test_a_schema_whose_values_take_no_bytes_is_unknown(schema: Any) -> None:
    """It is refused when it is read, in time that does not grow with what it promises."""
    began_s = time.monotonic()
    found = read(json.dumps(schema))
    assert isinstance(found, UnknownSchema)
    assert "bytes" in found.reason
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize(
    "schema",
    [
        record("R", a="null", b={"type": "array", "items": ["null", "string"]}),
        {"type": "map", "values": "null"},
        {"type": "array", "items": {"type": "map", "values": record("R", a=["null", "int"], b="string")}},
    ],
)
def test_a_schema_whose_values_take_bytes_is_read(schema: Any) -> None:
    """Optional entries, maps of nulls and nested arrays are what a shop may well have."""
    assert isinstance(read(json.dumps(schema)), ParsedSchema)


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "array", "items": "int"},
        {"type": "map", "values": "null"},
        {"type": "fixed", "name": "F", "size": 2**40},
        "bytes",
        "string",
    ],
)
def test_a_huge_count_or_size_costs_nothing(kind: Any) -> None:
    """Sixteen bytes that announce a tebibyte are rejected in under a second and 256 MB."""
    schema = a_schema(11, record("R", a=kind))
    before_kb, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = codec.decode(an_input_record(codec.FRAME.pack(0, 11) + b"\x80" * 5 + b"\x40abc"), {11: schema})
    assert isinstance(found, Rejected)
    assert time.monotonic() - began_s < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 256_000


def decimal(**more: Any) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": 18, **more}


def a_row(**values: Any) -> bytes:
    schema = a_schema(12, record("Row", listing_id="string", price=decimal(scale=2), page_count=decimal()))
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema.schema, {"listing_id": "bd-1", **values})
    return codec.FRAME.pack(0, 12) + stream.getvalue()


ROW = a_schema(12, record("Row", listing_id="string", price=decimal(scale=2), page_count=decimal()))


@pytest.mark.parametrize("price", ["8.50", "-0.01", "0", "123456789012345.67"])
def test_a_decimal_is_a_number(price: str) -> None:
    """As Debezium writes NUMERIC columns: the price as a number, and whole ones where an integer is asked for."""
    value = a_row(price=Decimal(price), page_count=Decimal(300))
    found = codec.decode(an_input_record(value), {12: ROW})
    assert isinstance(found, Change)
    assert found.listing is not None
    assert (found.listing.price, found.listing.page_count) == (float(price), 300)


def test_a_decimal_of_a_megabyte_is_rejected_at_once() -> None:
    """Turning it into a number took 143 s."""
    schema, began_s = a_schema(13, record("Row", price=decimal(scale=2))), time.monotonic()
    length = b"\x80\x89\x7a"  # 1,000,000 in zigzag
    value = codec.FRAME.pack(0, 13) + length + b"\x7f" + b"\xaa" * 999_999
    found = codec.decode(an_input_record(value), {13: schema})
    assert isinstance(found, Rejected)
    assert found.reason == "not a record of schema 13: ValueError decimal: at most 64 bytes, found 1000000"
    assert time.monotonic() - began_s < 1
