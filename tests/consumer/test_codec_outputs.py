"""Which bytes and headers an answer and a dead letter have."""

import io
import struct
from dataclasses import replace
from typing import Any

import fastavro
import pytest

from consumer import codec
from consumer.records import Answer, Outcome, OutputRecord, Rejected, Stage, Tombstone
from tests.examples import (
    ENRICHED_SCHEMA,
    INPUT_TOPIC,
    NOW_MS,
    a_change_event,
    a_deletion,
    a_used_hardback,
    an_entry,
    an_input_record,
    as_avro,
)

TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


def read_event(value: bytes | None) -> Any:
    """As a consumer of the enriched topic reads it."""
    assert value is not None
    magic, schema_id = struct.unpack_from(">bI", value)
    assert (magic, schema_id) == (0, ENRICHED_SCHEMA.schema_id)
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), ENRICHED_SCHEMA.schema, None)


def test_an_enriched_record_says_it_all() -> None:
    """The enriched event carries the predictions, the model and the source; key and headers carry on, the source in one more."""
    headers = (TRACE, ("enriched.source", b"elsewhere/1/2"), ("empty", None))
    record = a_change_event(a_used_hardback(), partition=2, offset=41, headers=headers)
    answer = Answer(record, Outcome.REUSED, an_entry(epoch=3))
    output = codec.enriched_record(answer, topic="out", schema=ENRICHED_SCHEMA, enriched_at_ms=NOW_MS, partition=2)
    source = (("enriched.source", b"catalogue.listings/2/41"),)
    assert output == OutputRecord("out", b"bd-1", output.value, (TRACE, ("empty", None), *source), 2)
    event = read_event(output.value)
    assert output.value == codec.encode(event, ENRICHED_SCHEMA), "what is encoded by hand is what fastavro writes"
    event["enriched_at"] = event["enriched_at"].timestamp()
    nothing = {"labels": [], "value": None, "low": None, "high": None}
    department = [{"label": "Fiction", "confidence": 0.83}, {"label": "历史", "confidence": 0.1}]
    assert event == {
        "listing_id": "bd-1",
        "version": 17,
        "outcome": "REUSED",
        "predictions": {
            "department": {**nothing, "labels": department},
            "topics": {**nothing, "labels": []},
            "page_count": {**nothing, "value": 312.0, "low": 190.5, "high": 505.0},
        },
        "model_name": "books",
        "model_version": "1.3.0",
        "cover": "NONE",
        "model_epoch": 3,
        "source_topic": INPUT_TOPIC,
        "source_partition": 2,
        "source_offset": 41,
        "enriched_at": NOW_MS / 1000,
        "engine": None,
    }


def test_an_enriched_record_names_the_engine_that_made_its_predictions() -> None:
    """What an engine predicted carries the engine's fingerprint, also when it is reused."""
    engine = "0123456789abcdef0123456789abcdef"
    answer = Answer(a_change_event(a_used_hardback()), Outcome.REUSED, replace(an_entry(), engine=engine))
    output = codec.enriched_record(answer, topic="out", schema=ENRICHED_SCHEMA, enriched_at_ms=NOW_MS, partition=0)
    event = read_event(output.value)
    assert event["engine"] == engine
    assert output.value == codec.encode(event, ENRICHED_SCHEMA)


def test_a_deletion_is_answered_with_a_null_value() -> None:
    """A deletion's answer is a null value under the listing's key, with its headers, its source and its version."""
    record = a_deletion("bd-1", version=4, offset=6, partition=1)
    answer = Answer(record, Outcome.PREDICTED, Tombstone("bd-1", 4))
    headers = (("version", b"4"), ("enriched.source", b"catalogue.listings/1/6"), ("enriched.version", b"4"))
    output = codec.enriched_record(answer, topic="out", schema=ENRICHED_SCHEMA, enriched_at_ms=NOW_MS, partition=None)
    assert output == OutputRecord("out", b"bd-1", None, headers, None)


def test_a_record_without_a_key_is_answered_under_its_listings_id() -> None:
    """The answer's key is the listing's id, also where the record had none."""
    record = an_input_record(as_avro(a_used_hardback()), key=None)
    answer = Answer(record, Outcome.PREDICTED, an_entry())
    output = codec.enriched_record(answer, topic="out", schema=ENRICHED_SCHEMA, enriched_at_ms=1, partition=None)
    assert output.key == b"bd-1"


def about(*, reason: str = "why", attempts: bytes = b"1") -> tuple[tuple[str, bytes], ...]:
    return (
        ("dlq.stage", b"cover"),
        ("dlq.reason", reason.encode()),
        ("dlq.topic", INPUT_TOPIC.encode()),
        ("dlq.partition", b"3"),
        ("dlq.offset", b"9"),
        ("dlq.timestamp", b"1700000000000"),
        ("dlq.attempts", attempts),
    )


@pytest.mark.parametrize(("key", "value"), [(b"\xff\x00", b"\x00broken"), (None, None), (b"", b"")])
def test_a_dead_letter_has_the_original_bytes(key: bytes | None, value: bytes | None) -> None:
    """A dead letter has key, value and headers byte for byte, and says in headers where it stood and why it is here."""
    record = an_input_record(value, key=key, partition=3, offset=9, headers=(TRACE, ("raw", b"\xff\x00"), ("none", None)))
    letter = codec.dead_letter(Rejected(record, Stage.COVER, "grün: 破"), topic="dead")
    kept = (TRACE, ("raw", b"\xff\x00"), ("none", None))
    assert letter == OutputRecord("dead", key, value, (*kept, *about(reason="grün: 破")), None)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"1", b"2"), (b"41", b"42"), (None, b"1"), (b"", b"1"), (b"-3", b"1"), (b"many", b"1"), (b"9" * 5_000, b"1")],
)
def test_attempts_count_on(before: bytes | None, after: bytes) -> None:
    """A dead letter that was replayed counts its attempts on and replaces its former reason; nonsense there counts as none."""
    headers = (("dlq.reason", b"formerly"), ("dlq.attempts", before), TRACE)
    record = an_input_record(b"x", partition=3, offset=9, headers=headers)
    letter = codec.dead_letter(Rejected(record, Stage.COVER, "why"), topic="dead")
    assert letter.headers == (TRACE, *about(attempts=after))
