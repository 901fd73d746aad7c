"""Events that are broken on purpose, one of each kind that a shop's systems have sent in earnest."""

import io
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fastavro
from PIL import Image

from consumer.codec import FRAME, MAGIC
from consumer.schema_registry import ParsedSchema

BOMB_SIDE_PX = 20_000
UNKNOWN_SCHEMA_ID = 424_242
TITLE_CHARACTERS = 20_000

# What another team registered under its own subject: valid Avro, but not a listing.
OTHER_SUBJECT = "warehouse.books-value"
OTHER_SCHEMA = """{"type": "record", "name": "Book", "namespace": "warehouse", "fields": [
    {"name": "listing_id", "type": ["null", "string"], "default": null},
    {"name": "title", "type": "int"}]}"""


@dataclass(frozen=True, slots=True)
class BrokenEvent:
    """A record for the input topic that must end as a dead letter. `name` says to a person what is wrong with it."""

    name: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Writer:
    """How one schema is written. Not the service's own encoder: what breaks must not depend on what is tested."""

    parsed: ParsedSchema

    def write(self, values: Mapping[str, Any]) -> bytes:
        stream = io.BytesIO()
        stream.write(FRAME.pack(MAGIC, self.parsed.schema_id))
        fastavro.schemaless_writer(stream, self.parsed.schema, values)
        return stream.getvalue()


def broken_events(*, listing: Writer, other: Writer, envelope: Writer, whole_jpeg: bytes) -> list[BrokenEvent]:
    """One event of each kind.

    Args:
        listing: writes the schema of the input topic.
        other: writes `OTHER_SCHEMA`.
        envelope: writes a Debezium envelope of it.
        whole_jpeg: a cover in good order, to be cut.
    """

    def event(number: int, name: str, write: Callable[[str], bytes]) -> BrokenEvent:
        listing_id = f"broken-{number:02d}"
        return BrokenEvent(name, listing_id.encode(), write(listing_id))

    title = "A Book That Cannot Be"
    makers: list[tuple[str, Callable[[str], bytes]]] = [
        ("JSON text where Avro belongs", lambda own: b'{"listing_id": "%s", "title": "Plain"}' % own.encode()),
        (
            "schema id nobody registered",
            lambda own: _with_schema_id(listing.write({"listing_id": own}), UNKNOWN_SCHEMA_ID),
        ),
        ("event cut in the middle", lambda own: listing.write({"listing_id": own, "title": title})[:-12]),
        ("title that is a number", lambda own: other.write({"listing_id": own, "title": 1984})),
        ("no listing id", lambda _: other.write({"listing_id": None, "title": 1984})),
        ("key of another listing", lambda own: listing.write({"listing_id": f"not-{own}", "title": title})),
        ("title that is not UTF-8", lambda own: _not_utf8(listing.write({"listing_id": own, "title": title}), title)),
        ("title of 20,000 characters", lambda own: listing.write({"listing_id": own, "title": "x" * TITLE_CHARACTERS})),
        (
            "price that is not a number",
            lambda own: listing.write({"listing_id": own, "title": title, "price": math.nan}),
        ),
        ("unknown Debezium operation", lambda own: envelope.write({"op": "x", "after": {"listing_id": own}, "source": {}})),
        (
            "cover cut in the middle",
            lambda own: listing.write({"listing_id": own, "title": title, "cover": whole_jpeg[: len(whole_jpeg) // 3]}),
        ),
        (
            "decompression bomb as cover",
            lambda own: listing.write({"listing_id": own, "title": title, "cover": decompression_bomb()}),
        ),
    ]
    return [event(number, name, write) for number, (name, write) in enumerate(makers, start=1)]


def decompression_bomb() -> bytes:
    """A PNG of some 50 kB that unpacks to 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + BOMB_SIDE_PX // 8)  # filter byte, then one bit a pixel
    rows = b"".join(packer.compress(row * 100) for _ in range(BOMB_SIDE_PX // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", BOMB_SIDE_PX, BOMB_SIDE_PX, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def small_jpeg() -> bytes:
    """A cover in good order, for listings that come without any."""
    stream = io.BytesIO()
    Image.radial_gradient("L").save(stream, "JPEG")
    return stream.getvalue()


def _with_schema_id(framed: bytes, schema_id: int) -> bytes:
    return framed[:1] + struct.pack(">I", schema_id) + framed[FRAME.size :]


def _not_utf8(framed: bytes, text: str) -> bytes:
    return framed.replace(text.encode(), b"\xff" * len(text))
