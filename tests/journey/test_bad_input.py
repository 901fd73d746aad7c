"""Bad events become dead letters with a reason; the batch around them goes on."""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from PIL import Image

from consumer.codec import encode
from consumer.dead_letters import Filter, read_dead_letters, replay
from consumer.schema_registry import UNKNOWN_SECONDS, ParsedSchema
from consumer.schemas import LISTING, LISTING_ENVELOPE
from tests.journey.publishing import framed, publish, send_raw
from tests.journey.running import RunningService, Surroundings, wait_for_answers

pytestmark = pytest.mark.integration

Listing = dict[str, Any]
NONE: Listing = {field["name"]: None for field in json.loads(LISTING)["fields"]} | {"authors": []}


def schema(surroundings: Surroundings, text: str, *, name: str) -> ParsedSchema:
    """A schema that the registry knows."""
    registry = surroundings.registry
    schema_id = registry.register(f"{surroundings.topics.input}-{name}", text)
    parsed = registry.schemas([schema_id])[schema_id]
    assert isinstance(parsed, ParsedSchema)
    return parsed


def listing_event(surroundings: Surroundings, **values: Any) -> bytes:
    """A well-formed event with these values."""
    return encode({**NONE, "listing_id": "bad-1", "version": 1, **values}, schema(surroundings, LISTING, name="value"))


def a_jpeg(size: tuple[int, int] = (64, 96)) -> bytes:
    """A decodable cover."""
    stream = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def a_decompression_bomb() -> bytes:
    """A PNG of a few kilobytes that says it is 30,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wrong_type(surroundings: Surroundings) -> bytes:
    """Another schema, in which the title is a number."""
    text = json.dumps(
        {
            "type": "record",
            "name": "Other",
            "fields": [{"name": "listing_id", "type": "string"}, {"name": "title", "type": "long"}],
        }
    )
    return encode({"listing_id": "bad-1", "title": 17}, schema(surroundings, text, name="other"))


def missing_id(surroundings: Surroundings) -> bytes:
    """A record without an id."""
    text = json.dumps({"type": "record", "name": "NoId", "fields": [{"name": "title", "type": "string"}]})
    return encode({"title": "Whose?"}, schema(surroundings, text, name="no-id"))


def invalid_utf8(surroundings: Surroundings) -> bytes:
    """A title of bytes that are no text."""
    event = listing_event(surroundings, title="AAAAAAAA")
    return event.replace(b"AAAAAAAA", b"\xff\xfe\xfd\xfcAAAA")


def unknown_op(surroundings: Surroundings) -> bytes:
    """A Debezium envelope that says neither create, update, read nor delete."""
    envelope = json.loads(LISTING_ENVELOPE)
    values = {field["name"]: None for field in envelope["fields"]}
    values |= {"source": {"ts_ms": 1}, "op": "x", "after": {**NONE, "listing_id": "bad-1", "version": 1}}
    return encode(values, schema(surroundings, LISTING_ENVELOPE, name="envelope"))


BAD: dict[str, tuple[Callable[[Surroundings], bytes], str, str]] = {
    "not Avro": (lambda _: b"<listing/>", "decode", "not Avro in Confluent framing"),
    "unknown schema id": (lambda _: framed(999_999, b"\x02a"), "decode", "999999"),
    "wrong type": (wrong_type, "decode", "title: expected a string or null, found int 17"),
    "missing id": (missing_id, "decode", "listing_id: expected a non-empty string, found nothing"),
    "key and id differ": (lambda s: listing_event(s, listing_id="another"), "decode", "key and id differ"),
    "truncated record": (lambda s: listing_event(s, title="A title")[:-9], "decode", "not a record of schema"),
    "truncated JPEG": (lambda s: listing_event(s, cover=a_jpeg()[:900]), "cover", "cover"),
    "broken JPEG": (lambda s: listing_event(s, cover=b"\xff\xd8\xff" + bytes(500)), "cover", "cover"),
    "decompression bomb": (lambda s: listing_event(s, cover=a_decompression_bomb()), "cover", "pixels"),
    "10 MB title": (
        lambda s: listing_event(s, title="x" * 10_000_000),
        "decode",
        "title: at most 10000 characters, found 10000000",
    ),
    "invalid UTF-8": (invalid_utf8, "decode", "UnicodeDecodeError"),
    "NaN price": (lambda s: listing_event(s, price=float("nan")), "decode", "price: expected a finite number"),
    "unknown Debezium op": (unknown_op, "decode", "Debezium op: expected c, u, r or d, found 'x'"),
}


def test_each_kind_of_bad_event_is_dead_lettered_with_its_reason(surroundings: Surroundings) -> None:
    """Every bad event lies between good ones; all good ones are enriched, each bad one says its stage and reason."""
    sent: dict[tuple[int, int], tuple[str, bytes]] = {}
    for number, (name, (make, _, _)) in enumerate(BAD.items()):
        publish(surroundings, [{"listing_id": f"good-{number}", "version": 1, "title": "A sound listing"}])
        value = make(surroundings)
        headers: list[tuple[str, str | bytes | None]] = [("traceparent", b"00-abc-def-01")]
        sent[send_raw(surroundings, b"bad-1", value, headers=headers)] = (name, value)
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, 2 * len(BAD))
        assert service.terminate() == 0
    assert {record.key for record in enriched} == {f"good-{number}".encode() for number in range(len(BAD))}
    assert len(dead) == len(BAD)
    for letter in dead:
        name, value = sent[int(letter.header("dlq.partition") or -1), int(letter.header("dlq.offset") or -1)]
        _, stage, reason = BAD[name]
        assert (letter.key, letter.value) == (b"bad-1", value), name
        assert letter.header("traceparent") == "00-abc-def-01"
        assert letter.header("dlq.stage") == stage, name
        assert reason in (letter.header("dlq.reason") or ""), name
        assert (letter.header("dlq.topic"), letter.header("dlq.attempts")) == (surroundings.topics.input, "1")


def test_what_is_missing_is_no_error(surroundings: Surroundings) -> None:
    """A listing with nothing but its id is enriched; so is one with an unknown language."""
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": "bare", "version": 1}, {"listing_id": "odd", "version": 1, "language": "tlh"}])
        enriched, dead = wait_for_answers(surroundings, 2)
    assert {record.key for record in enriched} == {b"bare", b"odd"}
    assert dead == []


def test_replay_gets_dead_letters_through_once_the_cause_is_gone(surroundings: Surroundings) -> None:
    """An event whose schema was not registered yet is dead-lettered; after registering, replay brings its bytes through."""
    registry, suffix = surroundings.registry, surroundings.topics.input.replace("-", "_")
    kafka = surroundings.settings().kafka
    with RunningService(surroundings) as service:
        service.wait_ready()
        known = schema(surroundings, LISTING.replace('"Listing"', f'"Known_{suffix}"'), name="known")
        value = encode({**NONE, "listing_id": "late-1", "version": 7, "title": "Waiting for Godot"}, known)
        unknown_id = known.schema_id + 1  # the registry numbers its schemas one after another
        late = framed(unknown_id, value[5:])
        send_raw(surroundings, b"late-1", late, headers=[("traceparent", b"00-1-2-01")])
        _, dead = wait_for_answers(surroundings, 1)
        assert [letter.value for letter in dead] == [late]
        assert [one.stage for one in read_dead_letters(kafka, Filter(reason_contains=str(unknown_id)))] == ["decode"]
        assert list(read_dead_letters(kafka, Filter(stage="cover"))) == []

        text = LISTING.replace('"Listing"', f'"Late_{suffix}"')
        assert registry.register(f"{surroundings.topics.input}-late", text) == unknown_id
        time.sleep(UNKNOWN_SECONDS)  # the service asks again for a schema that it did not find
        assert replay(kafka, Filter(stage="decode")) == 1
        enriched, dead = wait_for_answers(surroundings, 2, deadline_s=30)
    assert len(dead) == 1
    assert [(record.key, record.header("traceparent")) for record in enriched] == [(b"late-1", "00-1-2-01")]


def test_the_events_of_an_older_schema_are_read(surroundings: Surroundings) -> None:
    """A v1 event, written when listings had three fields, is read by this version."""
    v1 = json.dumps(
        {
            "type": "record",
            "name": "Listing",
            "namespace": "catalogue",
            "fields": [{"name": "listing_id", "type": "string"}, {"name": "title", "type": ["null", "string"]}],
        }
    )
    old = encode({"listing_id": "old-1", "title": "Don Quixote"}, schema(surroundings, v1, name="v1"))
    assert fastavro.parse_schema(json.loads(v1))
    with RunningService(surroundings) as service:
        service.wait_ready()
        send_raw(surroundings, b"old-1", old)
        enriched, dead = wait_for_answers(surroundings, 1)
    assert [record.key for record in enriched] == [b"old-1"]
    assert dead == []
