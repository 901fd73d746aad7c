"""What the topics' schemas promise."""

import datetime
import json
from io import BytesIO
from typing import Any

import fastavro
import pytest

from consumer import schemas
from consumer.records import Outcome
from model.listing import KNOWN_FIELDS, Listing

A_NOVEL: dict[str, Any] = {
    "listing_id": "bd-1",
    "version": 2**53 + 1,
    "title": "Emma",
    "authors": ["Jane Austen"],
    "publisher": "Penguin",
    "description": "爱玛",
    "price": 8.43,
    "currency": "USD",
    "page_count": 474,
    "language": "en",
    "year": 1815,
    "format": "Paperback",
    "cover": b"\x89PNG",
    "cover_url": "https://covers.example/emma.jpg",
}


def round_trip(text: str, value: dict[str, Any]) -> Any:
    schema = fastavro.parse_schema(json.loads(text))
    stream = BytesIO()
    fastavro.schemaless_writer(stream, schema, value, strict=True)
    stream.seek(0)
    return fastavro.schemaless_reader(stream, schema, None)


def test_a_listing_comes_back_as_it_was_written() -> None:
    """A listing comes back as it was written, and every field but the id may be left out."""
    assert round_trip(schemas.LISTING, A_NOVEL) == A_NOVEL
    schema = fastavro.parse_schema(json.loads(schemas.LISTING))
    stream = BytesIO()
    fastavro.schemaless_writer(stream, schema, {"listing_id": "bd-1"})
    stream.seek(0)
    assert fastavro.schemaless_reader(stream, schema, None) == {**dict.fromkeys(A_NOVEL), "listing_id": "bd-1"}


def test_the_listing_has_the_fields_that_the_code_knows() -> None:
    """The schema's fields are those of `model.listing.Listing`."""
    names = {field["name"] for field in json.loads(schemas.LISTING)["fields"]}
    assert names == set(Listing.__dataclass_fields__) == KNOWN_FIELDS - {"deleted"}


def test_an_envelope_comes_back_as_it_was_written() -> None:
    """A Debezium envelope of a listing comes back as it was written, and needs no other schema."""
    source = {"ts_ms": 1, "version": "3.1", "connector": "postgresql", "name": "shop", "db": "b", "schema": "p", "table": "l"}
    change = {"before": None, "after": A_NOVEL, "source": source, "op": "c", "ts_ms": 2}
    assert round_trip(schemas.LISTING_ENVELOPE, change) == change
    deletion = {**change, "before": A_NOVEL, "after": None, "op": "d"}
    assert round_trip(schemas.LISTING_ENVELOPE, deletion) == deletion


def test_the_envelope_holds_the_same_listing() -> None:
    """The listing inside the envelope is the listing schema, word for word."""
    before = json.loads(schemas.LISTING_ENVELOPE)["fields"][0]
    assert before["type"][1] == json.loads(schemas.LISTING)


def test_an_enriched_listing_comes_back_as_it_was_written() -> None:
    """Labels, intervals, outcome and position come back as they were written."""
    enriched = {
        "listing_id": "bd-1",
        "version": 17,
        "outcome": "REUSED",
        "cover": "MISSING",
        "predictions": {
            "department": {
                "labels": [{"label": "Fiction", "confidence": 0.83}],
                "value": None,
                "low": None,
                "high": None,
            },
            "page_count": {"labels": [], "value": 312.0, "low": 190.0, "high": 505.0},
        },
        "model_name": "books",
        "model_version": "1.2.0",
        "model_epoch": 3,
        "source_topic": "catalogue.listings",
        "source_partition": 5,
        "source_offset": 2**40,
        "enriched_at": datetime.datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=datetime.UTC),
        "engine": "0123456789abcdef0123456789abcdef",
    }
    assert round_trip(schemas.ENRICHED_LISTING, enriched) == enriched


def test_the_outcomes_are_those_of_the_code() -> None:
    """The schema's outcomes are those of the code, and a reader that does not know one takes the default."""
    fields = {field["name"]: field["type"] for field in json.loads(schemas.ENRICHED_LISTING)["fields"]}
    assert fields["outcome"]["symbols"] == [str(outcome) for outcome in Outcome]
    assert fields["outcome"]["default"] in fields["outcome"]["symbols"]


@pytest.mark.parametrize("text", [schemas.LISTING, schemas.LISTING_ENVELOPE, schemas.ENRICHED_LISTING])
def test_every_optional_field_has_a_default_and_every_field_a_meaning(text: str) -> None:
    """Each field says what it means, and one that may be null is null by default."""
    for field in json.loads(text)["fields"]:
        assert field["doc"].endswith(".") or field["name"] in {"op"}, field["name"]
        if isinstance(field["type"], list):
            assert field["type"][0] == "null"
            assert field["default"] is None


@pytest.mark.parametrize(
    ("text", "name", "default"),
    [
        (schemas.LISTING, "cover_url", None),
        (schemas.ENRICHED_LISTING, "cover", "NONE"),
        (schemas.ENRICHED_LISTING, "engine", None),
    ],
)
def test_events_from_before_a_field_was_there_can_be_read(text: str, name: str, default: object) -> None:
    """A listing without `cover_url`, an event without `cover` or `engine`: each reads as the default with today's schemas."""
    today = json.loads(text)
    before = {**today, "fields": [field for field in today["fields"] if field["name"] != name]}
    values = {
        "listing_id": "bd-1",
        "version": 1,
        "outcome": "REUSED",
        "predictions": {},
        "model_name": "a",
        "model_version": "1",
    }
    values |= {"model_epoch": 1, "source_topic": "t", "source_partition": 0, "source_offset": 0, "enriched_at": 0}
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(before), values)
    stream.seek(0)
    read: Any = fastavro.schemaless_reader(stream, fastavro.parse_schema(before), fastavro.parse_schema(today))
    assert read[name] == default
