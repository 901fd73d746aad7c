"""Named examples that tests share: listings, covers, change events and schemas, each with one thing to say."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import fastavro
from PIL import Image

from consumer import codec
from consumer.records import Change, Enriched, Headers, InputRecord
from consumer.schema_registry import ParsedSchema
from consumer.schemas import ENRICHED_LISTING, LISTING, LISTING_ENVELOPE
from consumer.task_prediction import Label, TaskPrediction
from model.listing import Listing

NOW_MS = 1_700_000_000_000
INPUT_TOPIC = "catalogue.listings"


# ── listings and covers ─────────────────────────────────────────────────────────────────────────────────────────


def a_used_hardback(listing_id: str = "bd-1", *, version: int = 17, price: float = 8.5) -> Listing:
    """An English listing with every field but a cover."""
    return Listing(
        listing_id=listing_id,
        version=version,
        title="A Brief History of Time: From the Big Bang to Black Holes",
        authors=("Stephen Hawking",),
        publisher="Bantam",
        description="Was there a beginning of time? Could time run backwards?",
        price=price,
        currency="USD",
        page_count=256,
        language="en",
        year=1988,
        format="Hardback",
    )


def a_chinese_novel(listing_id: str = "db-2", *, version: int = 3) -> Listing:
    """A Chinese listing priced in yuan that states neither publisher nor format."""
    return Listing(
        listing_id=listing_id,
        version=version,
        title="活着",
        authors=("余华",),
        description="《活着》讲述了农村人福贵悲惨的人生遭遇。",
        price=20.0,
        currency="CNY",
        language="zh",
        year=1993,
    )


def a_numbered_book(number: int, *, version: int = 1, listing_id: str | None = None) -> Listing:
    """One of many: the number is in its title, so each has content of its own."""
    return Listing(listing_id or f"book-{number}", version=version, title=f"Volume {number}", language="en")


def a_jpeg_cover(color: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (40, 60)) -> bytes:
    """A cover of one colour that decodes."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "JPEG")
    return stream.getvalue()


def a_truncated_jpeg() -> bytes:
    """The first half of a JPEG."""
    whole = a_jpeg_cover(size=(400, 600))
    return whole[: len(whole) // 2]


def a_decompression_bomb() -> bytes:
    """A PNG of some hundred bytes that claims ten gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(90_000))) + chunk(b"IEND", b"")


# ── schemas ─────────────────────────────────────────────────────────────────────────────────────────────────────


def a_schema(schema_id: int, text: str | Mapping[str, Any]) -> ParsedSchema:
    """A writer schema as the registry hands it over."""
    return ParsedSchema(schema_id, fastavro.parse_schema(json.loads(text) if isinstance(text, str) else dict(text)))


LISTING_SCHEMA = a_schema(1, LISTING)
ENVELOPE_SCHEMA = a_schema(2, LISTING_ENVELOPE)
ENRICHED_SCHEMA = a_schema(3, ENRICHED_LISTING)
# What an early producer wrote: of today's fields only a few.
V1_SCHEMA = a_schema(
    4,
    {
        "type": "record",
        "name": "Listing",
        "namespace": "catalogue",
        "fields": [
            {"name": "listing_id", "type": "string"},
            {"name": "title", "type": ["null", "string"], "default": None},
        ],
    },
)
# A shop's own: another record name, fields in another order and more of them, and nothing is optional.
FOREIGN_SCHEMA = a_schema(
    5,
    {
        "type": "record",
        "name": "Artikel",
        "namespace": "shop.eigene",
        "fields": [
            {"name": "warehouse", "type": {"type": "map", "values": "long"}},
            {"name": "title", "type": "string"},
            {"name": "price", "type": "float"},
            {"name": "listing_id", "type": "string"},
            {"name": "discontinued", "type": "boolean"},
        ],
    },
)


# ── change events ───────────────────────────────────────────────────────────────────────────────────────────────


def an_input_record(
    value: bytes | None,
    *,
    key: bytes | None = b"bd-1",
    partition: int = 0,
    offset: int = 0,
    headers: Headers = (),
    timestamp_ms: int = NOW_MS,
) -> InputRecord:
    """A record of the input topic."""
    return InputRecord(INPUT_TOPIC, partition, offset, key, value, headers, timestamp_ms)


def as_avro(listing: Listing, schema: ParsedSchema = LISTING_SCHEMA) -> bytes:
    """A listing as its producer frames it."""
    return codec.encode({**asdict(listing), "authors": list(listing.authors)}, schema)


def a_change_event(listing: Listing, **where: Any) -> InputRecord:
    """The record that says how a listing is now; `where` as for `an_input_record`."""
    return an_input_record(as_avro(listing), **{"key": listing.listing_id.encode(), **where})


def a_deletion(listing_id: str = "bd-1", *, version: int | None = None, **where: Any) -> InputRecord:
    """A null value; its version travels in a header."""
    headers = () if version is None else ((codec.VERSION_HEADER, str(version).encode()),)
    return an_input_record(None, **{"key": listing_id.encode(), "headers": headers, **where})


def an_update(listing: Listing, **where: Any) -> Change:
    """A decoded change event."""
    return Change(a_change_event(listing, **where), listing.listing_id, listing.version, listing)


def a_delete(listing_id: str = "bd-1", *, version: int = 17, **where: Any) -> Change:
    """A decoded deletion."""
    return Change(a_deletion(listing_id, version=version, **where), listing_id, version, None)


def a_debezium_event(
    op: str,
    *,
    before: Listing | None = None,
    after: Listing | None = None,
    source_ts_ms: int = 0,
    ts_ms: int | None = None,
    version: int | None = None,
    **where: Any,
) -> InputRecord:
    """A Debezium envelope; the rows' versions are replaced by `version`."""

    def row(listing: Listing | None) -> dict[str, Any] | None:
        if listing is None:
            return None
        return {**asdict(listing), "authors": list(listing.authors), "version": version}

    envelope = {"before": row(before), "after": row(after), "op": op, "source": {"ts_ms": source_ts_ms}, "ts_ms": ts_ms}
    listing = after or before
    key = b"bd-1" if listing is None else listing.listing_id.encode()
    return an_input_record(codec.encode(envelope, ENVELOPE_SCHEMA), **{"key": key, **where})


# ── what the store holds ────────────────────────────────────────────────────────────────────────────────────────


def an_entry(
    listing_id: str = "bd-1", *, version: int = 17, epoch: int = 3, label: str = "Fiction", content: str = "c0ffee"
) -> Enriched:
    """A listing's predictions: a classification, one without a likely label, and a regression."""
    predictions = {
        "department": TaskPrediction.classification((Label(label, 0.83), Label("历史", 0.1))),
        "topics": TaskPrediction.classification(()),
        "page_count": TaskPrediction.regression(312.0, 190.5, 505.0),
    }
    return Enriched(listing_id, version, content, predictions, f"books@1.{epoch}.0", epoch)
