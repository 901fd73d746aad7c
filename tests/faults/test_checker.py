"""The checker accepts a sound history and catches every broken one."""

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import fastavro
import pytest

from tests.faults.checker import History, check

LISTING = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Listing",
        "fields": [{"name": "listing_id", "type": "string"}, {"name": "version", "type": ["null", "long"]}],
    }
)
PREDICTION = {
    "type": "record",
    "name": "Prediction",
    "fields": [
        {"name": "labels", "type": {"type": "array", "items": {"type": "map", "values": ["string", "double"]}}},
        *({"name": name, "type": ["null", "double"], "default": None} for name in ("value", "low", "high")),
    ],
}
ENRICHED = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Enriched",
        "fields": [
            *({"name": name, "type": "string"} for name in ("listing_id", "outcome", "model_name", "model_version")),
            *({"name": name, "type": "long"} for name in ("version", "model_epoch", "source_partition", "source_offset")),
            {"name": "predictions", "type": {"type": "map", "values": PREDICTION}},
        ],
    }
)
SCHEMAS = {1: LISTING, 2: ENRICHED}


@dataclass(frozen=True)
class Row:
    """A record of any topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, Any]] = ()
    timestamp_ms: int = 0


def framed(schema_id: int, value: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, SCHEMAS[schema_id], value)
    return struct.pack(">bI", 0, schema_id) + stream.getvalue()


def an_update(offset: int, listing_id: str, version: int) -> Row:
    return Row(0, offset, listing_id.encode(), framed(1, {"listing_id": listing_id, "version": version}))


def a_deletion(offset: int, listing_id: str, version: int) -> Row:
    return Row(0, offset, listing_id.encode(), None, [("version", str(version).encode())])


def an_answer(offset: int, asked: Row, version: int, *, outcome: str = "PREDICTED", pages: float = 300.0) -> Row:
    listing_id = (asked.key or b"").decode()
    event = {
        "listing_id": listing_id,
        "version": version,
        "outcome": outcome,
        "model_name": "books",
        "model_version": "1",
        "model_epoch": 3,
        "source_partition": asked.partition,
        "source_offset": asked.offset,
        "predictions": {
            "department": {"labels": [{"label": "Fiction", "confidence": 0.9}]},
            "page_count": {"labels": [], "value": pages, "low": 200.0, "high": 400.0},
        },
    }
    return Row(asked.partition, offset, asked.key, framed(2, event), source_of(asked))


def a_null(offset: int, asked: Row) -> Row:
    return Row(asked.partition, offset, asked.key, None, source_of(asked))


def a_dead_letter(offset: int, asked: Row) -> Row:
    headers = [("dlq.partition", str(asked.partition).encode()), ("dlq.offset", str(asked.offset).encode())]
    return Row(0, offset, asked.key, asked.value, headers)


def source_of(asked: Row) -> list[tuple[str, bytes]]:
    return [("enriched.source", f"listings/{asked.partition}/{asked.offset}".encode())]


def stored(version: int, *, pages: float = 300.0, epoch: int = 3) -> dict[str, str]:
    return {
        **{"_version": str(version), "_model": "books@1", "_model_epoch": str(epoch), "_content": "ab", "_updated_ms": "5"},
        "department": json.dumps({"labels": [{"label": "Fiction", "confidence": 0.9}]}),
        "page_count": json.dumps({"value": pages, "low": 200.0, "high": 400.0}),
    }


INPUTS = [
    an_update(0, "a", 1),
    an_update(1, "b", 1),
    an_update(2, "a", 3),
    Row(0, 3, b"bad", b"not Avro"),
    an_update(4, "a", 2),  # late
    a_deletion(5, "b", 2),
]
SOUND = History(
    inputs=INPUTS,
    enriched=[
        an_answer(0, INPUTS[0], 1),
        an_answer(1, INPUTS[1], 1),
        an_answer(2, INPUTS[2], 3),
        an_answer(4, INPUTS[4], 3, outcome="SUPERSEDED"),
        a_null(5, INPUTS[5]),
    ],
    dead_letters=[a_dead_letter(0, INPUTS[3])],
    store={"a": stored(3), "b": {"_version": "2", "_deleted": "1"}},
    schemas=SCHEMAS,
)


def kinds(history: History) -> set[str]:
    return {violation.kind for violation in check(history)}


def with_answer(index: int, answer: Row) -> History:
    return replace(SOUND, enriched=[*SOUND.enriched[:index], answer, *SOUND.enriched[index + 1 :]])


def with_stored(listing_id: str, held: dict[str, str]) -> History:
    return replace(SOUND, store={**SOUND.store, listing_id: held})


def test_a_sound_history_with_late_deleted_and_bad_records_is_accepted() -> None:
    """Nothing is wrong where every record is answered once and the store equals the topic's end."""
    assert check(SOUND) == []


def test_a_store_that_led_the_topic_at_a_kill_is_accepted() -> None:
    """A record may be answered with a newer version that the store held already; also with its later deletion."""
    early = an_answer(0, INPUTS[0], 3, outcome="SUPERSEDED")
    deleted_early = a_null(1, INPUTS[1])
    assert check(replace(SOUND, enriched=[early, deleted_early, *SOUND.enriched[2:]])) == []


def test_a_lost_record_is_caught() -> None:
    """An input offset without an answer."""
    assert kinds(replace(SOUND, enriched=SOUND.enriched[1:])) == {"lost"}


def test_a_lost_dead_letter_is_caught() -> None:
    """A bad record without its dead letter."""
    assert kinds(replace(SOUND, dead_letters=[])) == {"lost"}


def test_a_doubled_record_is_caught() -> None:
    """An input offset with two answers, one after the other or one in each topic."""
    assert "doubled" in kinds(replace(SOUND, enriched=[*SOUND.enriched, an_answer(9, INPUTS[2], 3)]))
    assert "doubled" in kinds(replace(SOUND, dead_letters=[*SOUND.dead_letters, a_dead_letter(1, INPUTS[0])]))


def test_swapped_answers_of_a_key_are_caught() -> None:
    """Answers of one key in another order than their inputs."""
    first, third = an_answer(2, INPUTS[0], 1), an_answer(0, INPUTS[2], 3)
    assert kinds(replace(SOUND, enriched=[third, SOUND.enriched[1], first, *SOUND.enriched[3:]])) == {"out of order", "went back"}


def test_a_stale_answer_is_caught() -> None:
    """A late version answered as if it were news."""
    assert kinds(with_answer(3, an_answer(4, INPUTS[4], 2))) == {"went back", "store differs"}


def test_an_answer_of_a_version_nobody_sent_is_caught() -> None:
    """The version of an answer is one that its listing had."""
    assert "wrong answer" in kinds(with_answer(2, an_answer(2, INPUTS[2], 7, outcome="SUPERSEDED")))


def test_an_answer_under_another_key_or_partition_is_caught() -> None:
    """Key and partition are the input's."""
    assert "misplaced" in kinds(with_answer(0, replace(SOUND.enriched[0], key=b"c")))
    assert "misplaced" in kinds(with_answer(0, replace(SOUND.enriched[0], partition=1)))


def test_an_answer_to_a_record_that_does_not_exist_is_caught() -> None:
    """Nothing is invented."""
    assert "invented" in kinds(replace(SOUND, enriched=[*SOUND.enriched, an_answer(9, an_update(77, "a", 3), 3)]))


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        (stored(1), "store is older"),
        ({}, "store is older"),
        (stored(4), "store differs"),
        (stored(3, pages=301.0), "store differs"),
        (stored(3, epoch=2), "store differs"),
        ({"_version": "3", "_deleted": "1"}, "wrong tombstone"),
        ({name: value for name, value in stored(3).items() if name != "department"}, "store differs"),
    ],
    ids=["trails", "empty", "ahead", "other predictions", "older model", "deleted", "half a listing"],
)
def test_a_store_that_trails_or_differs_is_caught(held: dict[str, str], kind: str) -> None:
    """The store holds the highest version sent and equals the topic's last record of each key."""
    assert kind in kinds(with_stored("a", held))


def test_a_listing_that_came_back_after_its_deletion_is_caught() -> None:
    """A deletion is answered with a null value and leaves a tombstone, no more and no less."""
    assert kinds(with_stored("b", stored(1))) == {"store is older", "wrong tombstone"}
    assert "wrong tombstone" in kinds(with_stored("b", {**stored(2), "_deleted": "1"}))
    assert "wrong tombstone" in kinds(with_answer(4, an_answer(5, INPUTS[5], 1)))


def test_a_tombstone_for_a_listing_that_nobody_deleted_is_caught() -> None:
    """A null value needs a deletion of that version or a later one."""
    assert kinds(with_answer(2, a_null(2, INPUTS[2]))) == {"wrong tombstone"}


def test_a_dead_letter_for_a_sound_record_and_an_answer_to_a_bad_one_are_caught() -> None:
    """Dead letters are for what cannot be read, and hold the original's bytes."""
    assert "wrong answer" in kinds(
        replace(SOUND, enriched=SOUND.enriched[1:], dead_letters=[*SOUND.dead_letters, a_dead_letter(1, INPUTS[0])])
    )
    assert "wrong answer" in kinds(replace(SOUND, dead_letters=[replace(SOUND.dead_letters[0], value=b"other")]))
    assert "wrong answer" in kinds(replace(SOUND, dead_letters=[], enriched=[*SOUND.enriched, an_answer(9, INPUTS[3], 1)]))
