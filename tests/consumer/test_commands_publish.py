"""`consumer publish`: which events its lines become; the broker and the registry are faked."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumer import codec, plain_producer
from consumer.__main__ import app
from consumer.records import Change, Headers, InputRecord
from consumer.schema_registry import ParsedSchema
from model.listing import Listing
from tests.examples import LISTING_SCHEMA, NOW_MS


class FakeRegistry:
    """Knows the listing's schema."""

    def __init__(self, *_: object) -> None: ...

    def register(self, subject: str, schema_text: str) -> int:
        assert subject == "catalogue.listings-value"
        assert "Listing" in schema_text
        return LISTING_SCHEMA.schema_id

    def schemas(self, _: list[int]) -> dict[int, ParsedSchema]:
        return {LISTING_SCHEMA.schema_id: LISTING_SCHEMA}


class FakeProducer:
    """Keeps what was produced."""

    def __init__(self, sent: list[InputRecord]) -> None:
        self._sent = sent

    def produce(self, topic: str, *, key: bytes, value: bytes | None, headers: Headers) -> None:
        self._sent.append(InputRecord(topic, 0, len(self._sent), key, value, tuple(headers), NOW_MS))

    def poll(self, _: float) -> None: ...

    def flush(self, _: float) -> int:
        return 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[InputRecord]:
    records: list[InputRecord] = []
    monkeypatch.setattr(plain_producer, "Producer", lambda _: FakeProducer(records))
    monkeypatch.setattr("consumer.schema_registry.SchemaRegistry", FakeRegistry)
    monkeypatch.setattr("consumer.__main__.configure_logging", lambda level, fmt: None)
    return records


def run(tmp_path: Path, *lines: dict[str, Any] | str) -> tuple[int, str]:
    file = tmp_path / "listings.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    shown = CliRunner().invoke(app, ["publish", str(file)])
    return shown.exit_code, shown.output.splitlines()[-1]


def decoded(records: list[InputRecord]) -> list[object]:
    return [codec.decode(record, {LISTING_SCHEMA.schema_id: LISTING_SCHEMA}) for record in records]


def test_lines_become_events_that_the_service_reads(tmp_path: Path, sent: list[InputRecord]) -> None:
    """Listings and deletions become change events under their ids; with and without a version."""
    said = run(
        tmp_path,
        {"listing_id": "a", "version": 4, "title": "活着", "authors": ["余华"]},
        {"listing_id": "a", "version": 5, "deleted": True},
        {"listing_id": "b", "deleted": True},
        {"listing_id": "c", "version": 0, "deleted": True},
    )
    assert said == (0, "4 events sent to catalogue.listings")
    assert decoded(sent) == [
        Change(sent[0], "a", 4, Listing("a", 4, title="活着", authors=("余华",))),
        Change(sent[1], "a", 5, None),
        Change(sent[2], "b", NOW_MS, None),
        Change(sent[3], "c", 0, None),
    ]


def test_lines_that_are_no_listings_are_not_sent(tmp_path: Path, sent: list[InputRecord]) -> None:
    """Lines that are no listings are counted and passed over, the others are sent, and the exit code is 2."""
    said = run(
        tmp_path,
        "not json",
        {"title": "no id"},
        {"listing_id": "a", "price": "8.50"},
        {"deleted": True},
        {"listing_id": 7, "deleted": True},
        {"listing_id": "a", "deleted": True, "version": "newest"},
        '{"listing_id": "a", "title": "lone \\ud800"}',
        {"listing_id": "z", "version": 1},
    )
    assert said == (2, "1 events sent to catalogue.listings, 7 lines were no listings")
    assert decoded(sent) == [Change(sent[0], "z", 1, Listing("z", 1))]
