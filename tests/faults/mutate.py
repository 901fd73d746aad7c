"""Change events as nobody should send them, made from real ones: each is given by a seed and a number, and comes again so.

A case begins as a real listing (with a cover in one of ten), then one or two mutations break its fields, its cover, its bytes,
its frame, its key or its headers.
"""

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

from consumer.codec import FRAME, MAGIC, encode
from consumer.records import Headers
from consumer.schema_registry import ParsedSchema
from consumer.schemas import LISTING
from tests.benchmarks.listings import real_listings
from tests.model.fields import listing_fields

VALUE_BYTES_MAX = 900_000  # what a broker takes
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\u202e反转",
    "e\u0301" * 50,
    "\U0001f4da" * 20,
    "\ufeff",
    "ﷺ" * 100,
    "'; DROP TABLE listings; --",
    "\\u0000",
)
ODD_NUMBERS = (0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
ODD_INTEGERS = (0, -1, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))


@dataclass(frozen=True, slots=True)
class Case:
    """A record to be, and what was done to it."""

    number: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Headers
    done: tuple[str, ...]


class Mutator:
    """Makes cases. `listing` and `envelope` are the schemas as the registry at hand numbers them."""

    def __init__(self, seed: int, listing: ParsedSchema, envelope: ParsedSchema) -> None:
        self._seed = seed
        self._listing, self._envelope = listing, envelope
        self._rows = [listing_fields(row) for row in real_listings(400)]
        self._covers = [
            _image(Random(number), kind) for number, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "JPEG", "JPEG"))
        ] + [_image(Random(9), "JPEG", progressive=True)]

    def case(self, number: int) -> Case:
        """The case of that number: always the same."""
        chance = Random(f"{self._seed}/{number}")
        row = {**chance.choice(self._rows), "listing_id": f"fuzz-{number % 5_000}", "version": number}
        done = []
        if chance.random() < 0.1:
            row["cover"], what = self._cover(chance)
            done.append(what)
        if chance.random() < 0.7:
            done.append(_odd_field(chance, row))
        key: bytes | None = str(row["listing_id"]).encode("utf-8", "replace")
        value: bytes | None = self._encoded(chance, row)
        if chance.random() < 0.25 or not done:
            mutate = chance.choice(_OF_BYTES)
            value = mutate(chance, value or b"\0", lambda: self._encoded(chance, chance.choice(self._rows)))
            done.append(mutate.__name__.strip("_"))
        headers: Headers = ()
        if chance.random() < 0.05:
            key, value, headers = _odd_envelope(chance, key, value)
            done.append("odd_envelope")
        if value is not None and len(value) > VALUE_BYTES_MAX:
            value = value[:VALUE_BYTES_MAX]
        return Case(number, key, value, headers, tuple(done))

    def _encoded(self, chance: Random, row: dict[str, Any]) -> bytes:
        if chance.random() < 0.2:
            event = {
                "op": chance.choice("cdurx"),
                "before": row,
                "after": row,
                "ts_ms": 1,
                "source": {"ts_ms": chance.choice(ODD_INTEGERS)},
            }
            return encode(event, self._envelope)
        return encode(row, self._listing)

    def _cover(self, chance: Random) -> tuple[bytes, str]:
        cover = bytearray(chance.choice(self._covers))
        kind = chance.choice(("whole", "header", "truncated", "dimensions", "flips", "noise", "bomb", "chunks"))
        if kind == "header":
            for _ in range(chance.randint(1, 6)):
                cover[chance.randrange(min(200, len(cover)))] = chance.randrange(256)
        elif kind == "truncated":
            del cover[chance.randrange(len(cover)) :]
        elif kind == "dimensions":
            cover = _other_dimensions(chance, cover)
        elif kind == "flips":
            for _ in range(chance.randint(1, 30)):
                cover[chance.randrange(len(cover))] ^= 1 << chance.randrange(8)
        elif kind == "noise":
            cover[chance.choice((0, 4, 20)) :] = chance.randbytes(chance.choice((1, 100, 5_000)))
        elif kind == "chunks":
            cover = bytearray(_other_chunks(chance, self._covers[1]))
        elif kind == "bomb":
            cover = bytearray(_bomb(chance.choice((2_000, 20_000, 60_000, 2**31 - 1)), chance.choice((1, 2_000, 60_000))))
        return bytes(cover), f"cover_{kind}"


def _image(chance: Random, kind: str, **how: bool) -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (60, 90), chance.randbytes(60 * 90 * 3)).save(stream, kind, **how)
    return stream.getvalue()


def _other_dimensions(chance: Random, cover: bytearray) -> bytearray:
    """In a JPEG's frame header, or a PNG's first chunk; anywhere near the start of other formats."""
    at = cover.find(b"\xff\xc0") + 5 if b"\xff\xc0" in cover else 16
    cover[at : at + 4] = struct.pack(">HH", chance.choice((0, 1, 65_535)), chance.choice((0, 1, 65_535)))
    return cover


_PNG = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(width: int, height: int) -> bytes:
    """A small PNG with its checksum right, that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(100_000))) + _chunk(b"IEND", b"")


def _other_chunks(chance: Random, png: bytes) -> bytes:
    """A PNG with chunks altered, left out, repeated, swapped or put in; their checksums are right, so decoders look inside."""
    chunks, at = list[tuple[bytes, bytes]](), len(_PNG)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(chance.randint(1, 4)):
        place, other = chance.randrange(len(chunks)), chance.randrange(len(chunks))
        kind, data = chunks[place]
        change = chance.choice(("alter", "drop", "repeat", "swap", "insert"))
        if change == "alter" and data:
            broken = bytearray(data)
            broken[chance.randrange(min(40, len(data)))] = chance.randrange(256)
            chunks[place] = (kind, bytes(broken))
        elif change == "drop" and len(chunks) > 1:
            del chunks[place]
        elif change == "repeat":
            chunks.insert(place, chunks[place])
        elif change == "swap":
            chunks[place], chunks[other] = chunks[other], chunks[place]
        else:
            odd = chance.choice((b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fdAT", b"eXIf", b"xxxx"))
            chunks.insert(place, (odd, chance.randbytes(chance.choice((0, 3, 13, 800)))))
    return _PNG + b"".join(_chunk(kind, data) for kind, data in chunks)


def _odd_field(chance: Random, row: dict[str, Any]) -> str:
    """Another value of the field's type in the schema: what does not fit the type would never leave the sender."""
    name = chance.choice([one for one in _TYPES if one != "cover"])
    kind = _TYPES[name]
    if kind == "double":
        row[name] = chance.choice(ODD_NUMBERS)
    elif kind in ("int", "long"):
        row[name] = chance.choice([one for one in ODD_INTEGERS if kind == "long" or -(2**31) <= one < 2**31])
    elif kind == "array":
        row[name] = [chance.choice(ODD_TEXTS) * chance.choice((1, 1, 200)) for _ in range(chance.choice((0, 1, 300)))]
    else:
        row[name] = chance.choice((*ODD_TEXTS, "書" * 20_000, "wordy " * chance.choice((10, 5_000))))
    return f"field_{name}"


def _type_of(field: dict[str, Any]) -> str:
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    kind = next(one for one in kinds if one != "null")
    return str(kind["type"] if isinstance(kind, dict) else kind)


_TYPES = {one["name"]: _type_of(one) for one in json.loads(LISTING)["fields"]}


Another = Callable[[], bytes]


def _flips(chance: Random, value: bytes, _: Another) -> bytes:
    broken = bytearray(value)
    for _number in range(chance.randint(1, 8)):
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    return bytes(broken)


def _cut_out(chance: Random, value: bytes, _: Another) -> bytes:
    at = chance.randrange(len(value))
    return value[:at] + value[at + chance.choice((1, 4, 50)) :]


def _put_in(chance: Random, value: bytes, _: Another) -> bytes:
    at = chance.randrange(len(value))
    return value[:at] + chance.randbytes(chance.choice((1, 4, 50))) + value[at:]


def _truncated(chance: Random, value: bytes, _: Another) -> bytes:
    return value[: chance.randrange(len(value))]


def _spliced(chance: Random, value: bytes, another: Another) -> bytes:
    other = another()
    return value[: chance.randrange(len(value))] + other[chance.randrange(len(other)) :]


def _lying_length(chance: Random, value: bytes, _: Another) -> bytes:
    """Where a varint may stand: huge, negative, or without an end."""
    at = chance.randrange(min(5, len(value)), len(value)) if len(value) > 6 else 0
    lie = chance.choice((b"\xff" * 9 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\x01", b"\xff" * 20, b"\x80\x80\x80\x80\x01"))
    return value[:at] + lie + value[at + 1 :]


def _surrogate(chance: Random, value: bytes, _: Another) -> bytes:
    """Half a pair in UTF-8's clothes, as Java's own writers make it, of the same length: most often within a text."""
    at = chance.randrange(len(value))
    return value[:at] + chance.choice((b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb3\x9a")) + value[at + 3 :]


def _other_frame(chance: Random, value: bytes, _: Another) -> bytes:
    schema_id = chance.choice((0, 1, 2, 2**31 - 1))
    return chance.choice((FRAME.pack(MAGIC, schema_id), b"\x01\0\0\0\x01", b"{", b"")) + value[FRAME.size :]


def _noise(chance: Random, _: bytes, __: Another) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 4, 5, 6, 300, 5_000)))


_OF_BYTES = (_flips, _cut_out, _put_in, _truncated, _spliced, _lying_length, _surrogate, _other_frame, _noise)


def _odd_envelope(chance: Random, key: bytes | None, value: bytes | None) -> tuple[bytes | None, bytes | None, Headers]:
    """Keys, deletions and headers."""
    key = chance.choice((None, b"", b"\xff\xfe", b"another", b"k" * 5_000, key))
    value = chance.choice((None, b"", value))
    version = chance.choice((b"", b"1", b"-5", b"9" * 19, b"9" * 5_000, b"\xff", b"0x10", None))
    headers = chance.choice(((), (("version", version),), (("dlq.attempts", version), ("a", None)), (("version", version),) * 3))
    return key, value, headers
