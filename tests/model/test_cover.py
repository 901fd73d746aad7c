"""A cover's bytes, from strangers, to pixels."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.features import FeatureSettings, InvalidCover, decode_cover
from tests.model.examples import image_bytes

GREY = FeatureSettings()
COLOUR = FeatureSettings(cover_channels=3, cover_height=48, cover_width=32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_gives_the_size_and_channels_of_the_bundle(kind: str) -> None:
    """JPEG, PNG and WebP come out as uint8 [channels, height, width]."""
    for chosen, shape in ((GREY, (1, 64, 64)), (COLOUR, (3, 48, 32))):
        pixels = decode_cover(image_bytes(kind), chosen)
        assert pixels.shape == shape
        assert pixels.dtype == np.uint8
        assert pixels[:, 0].mean() < 30
        assert pixels[:, -1].mean() > 225


@pytest.mark.parametrize(("kind", "mode"), [("PNG", m) for m in ("1", "L", "LA", "P", "RGBA", "I;16")] + [("JPEG", "CMYK")])
def test_every_colour_mode_is_read(kind: str, mode: str) -> None:
    """Palettes, transparency, 16 bits and print colours are no error."""
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        data = image_bytes(kind, mode=mode)
    assert decode_cover(data, GREY).shape == (1, 64, 64)


def test_what_is_transparent_is_white() -> None:
    """A transparent image looks as on a white page."""
    buffer = io.BytesIO()
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(buffer, "PNG")
    assert decode_cover(buffer.getvalue(), GREY).min() == 255


def png_with_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def webp_with_size(width: int, height: int) -> bytes:
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas + b"VP8 " + bytes(20)


def jpeg_with_size(width: int, height: int) -> bytes:
    data = bytearray(image_bytes("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected a JPEG, PNG or WebP image, found bytes that start with nothing"),
        (b"GIF89a" + bytes(50), "expected a JPEG, PNG or WebP image"),
        (b"<html>not found</html>", "expected a JPEG, PNG or WebP image"),
        (image_bytes("JPEG")[:-200], "broken or truncated"),
        (image_bytes("JPEG")[:30], "broken or truncated"),
        (image_bytes("PNG")[:-40], "broken or truncated"),
        (image_bytes("WEBP")[:60], "broken or truncated"),
        (image_bytes("WEBP")[:18], "ends inside its header"),
        (png_with_size(60_000, 60_000), r"60000 x 60000 pixels; at most 25000000"),
        (webp_with_size(16_000, 16_000), r"16000 x 16000 pixels"),
        (jpeg_with_size(20_000, 20_000), r"20000 x 20000 pixels; at most 50000000"),
        (image_bytes("PNG", size=(8, 8), mode="L").replace(b"IDAT", b"acTLIDAT"), "animated"),
        (b"\xff\xd8\xff" + b"\xff\xda" * 200, "200 scans"),
        (b"\xff\xd8\xff" + bytes(40 * 1024 * 1024), "bytes; at most"),
    ],
    ids=["nothing", "gif", "html", "jpeg cut", "jpeg header", "png cut", "webp cut", "webp header", "png bomb", "webp bomb",
         "jpeg bomb", "animation", "scans", "size"],
)  # fmt: skip
def test_bad_covers_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    """Other formats, truncated and broken images and decompression bombs end in InvalidCover, and nothing else."""
    with pytest.raises(InvalidCover, match=reason):
        decode_cover(data, GREY)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([image_bytes(kind, size=(20, 30)) for kind in ("JPEG", "PNG", "WEBP")]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 300),
)
def test_damaged_bytes_never_raise_anything_else(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever bytes are damaged or missing, the answer is pixels or InvalidCover, without a warning."""
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = decode_cover(bytes(damaged[: len(damaged) - cut]), GREY)
        except InvalidCover:
            return
    assert pixels.shape == (1, 64, 64)


def test_covers_are_decoded_by_several_threads_at_once() -> None:
    """Good and bad covers decoded side by side give what they give alone."""
    good, bomb = image_bytes("JPEG"), png_with_size(60_000, 60_000)
    expected = decode_cover(good, GREY)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(30):
            if not np.array_equal(decode_cover(good, GREY), expected):
                wrong.append("pixels")
            try:
                decode_cover(bomb, GREY)
                wrong.append("bomb")
            except InvalidCover:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
