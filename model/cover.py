"""A cover's bytes to a small array of pixels, safely.

The bytes come from strangers. The size is read from the header before a pixel is decoded, so that an image of a few
kilobytes cannot claim gigabytes, and whatever Pillow raises becomes one exception with a reason a person understands.
"""

import io
import struct
import zlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

# A cover of a book is below 20 megapixels. JPEG may be larger: it is decoded at 1/8 scale.
PIXELS_MAX_JPEG = 50_000_000
PIXELS_MAX_OTHER = 25_000_000
# A progressive JPEG may hold thousands of almost empty scans, each a pass over all blocks. Real ones have about ten.
SCANS_MAX = 100
BYTES_MAX = 32 * 1024 * 1024

# What Pillow's decoders were seen to raise on broken bytes. Warning is among them where warnings are made errors.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class InvalidCover(ValueError):
    """The bytes are not a usable cover; the message says why."""


class CoverSettings(Protocol):
    """The part of the feature settings that a cover needs."""

    @property
    def cover_channels(self) -> int: ...
    @property
    def cover_height(self) -> int: ...
    @property
    def cover_width(self) -> int: ...


def decode_cover(data: bytes, settings: CoverSettings) -> NDArray[np.uint8]:
    """Decodes a JPEG, PNG or WebP image to the size and the channels of the model.

    Safe to call from several threads; at most about 200 MB and one second for the worst input that is accepted.

    Returns:
        uint8 [channels, height, width]; transparent parts are white, the aspect ratio is not kept.

    Raises:
        InvalidCover: another format, too many pixels or bytes, truncated or broken.
    """
    if len(data) > BYTES_MAX:
        raise InvalidCover(f"the image has {len(data)} bytes; at most {BYTES_MAX} are read")
    plugin = _plugin_of(data)
    try:
        # The plugin's class rather than Image.open: that one checks the size through a process-wide warning filter,
        # which is not safe with threads.
        with plugin(io.BytesIO(data)) as image:
            _require_few_pixels(image.size, limit=_pixels_max(plugin))
            return _pixels(image, settings)
    except InvalidCover:
        raise
    except _PILLOW_ERRORS as error:
        raise InvalidCover(f"the image is broken or truncated ({type(error).__name__}: {str(error)[:120]})") from error


def _pixels_max(plugin: type[Image.Image]) -> int:
    return PIXELS_MAX_JPEG if plugin is JpegImagePlugin.JpegImageFile else PIXELS_MAX_OTHER


def _plugin_of(
    data: bytes,
) -> type[JpegImagePlugin.JpegImageFile | PngImagePlugin.PngImageFile | WebPImagePlugin.WebPImageFile]:
    """The decoder for these bytes, after the checks that must come before Pillow opens them."""
    if data[:3] == b"\xff\xd8\xff":
        scans = data.count(b"\xff\xda")
        if scans > SCANS_MAX:
            raise InvalidCover(f"the JPEG has {scans} scans; at most {SCANS_MAX} are decoded")
        return JpegImagePlugin.JpegImageFile
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        # Pillow answers a broken animation with a process-wide warning.
        if data.find(b"acTL", 0, max(data.find(b"IDAT"), 0)) >= 0:
            raise InvalidCover("the PNG is animated; expected a still image")
        return PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Opening a WebP allocates its canvas, so its size is read by hand.
        _require_few_pixels(_webp_size(data), limit=PIXELS_MAX_OTHER)
        return WebPImagePlugin.WebPImageFile
    start = data[:8].hex(" ") or "nothing"
    raise InvalidCover(f"expected a JPEG, PNG or WebP image, found bytes that start with {start}")


def _require_few_pixels(size: tuple[int, int], *, limit: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidCover(f"the image is {width} x {height} pixels: it has no pixel")
    if width * height > limit:
        raise InvalidCover(f"the image is {width} x {height} pixels; at most {limit} are decoded (decompression bomb?)")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP file. Source: RFC 9649, sections 2.5 to 2.7 and 3.4."""
    kind, header = data[12:16], data[20:30]
    if len(header) < 10:
        raise InvalidCover("the WebP image ends inside its header")
    if kind == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF
    raise InvalidCover(f"expected a WebP image, found a chunk {kind!r}")


def _pixels(image: Image.Image, settings: CoverSettings) -> NDArray[np.uint8]:
    mode = "L" if settings.cover_channels == 1 else "RGB"
    size = (settings.cover_width, settings.cover_height)
    image.draft(mode, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough
    image.load()
    flat = _on_white(image) if _may_be_transparent(image) else image
    small = flat.convert(mode).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.uint8).reshape(size[1], size[0], settings.cover_channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "La", "RGBa", "P"} or "transparency" in image.info


def _on_white(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha)
