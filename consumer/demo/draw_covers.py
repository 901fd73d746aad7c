"""Draws the covers of the demo's listings into covers.zip; the same listings give the same pictures.

Example: .venv/bin/python -m consumer.demo.draw_covers consumer/demo/listings.jsonl consumer/demo/covers.zip
"""

import hashlib
import io
import json
import random
import sys
import textwrap
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH_PX, HEIGHT_PX = 160, 240
QUALITY = 68
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: the archive must not depend on when it was made

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]


def draw_cover(title: str, authors: list[str]) -> bytes:
    """A typographic cover as JPEG, with the word "drawn" on it so that nobody takes it for a publisher's.

    The title is set where Pillow's own font has its letters, which is plain Latin. Another font would depend on the
    machine.
    """
    seed = int.from_bytes(hashlib.sha256("\n".join([title, *authors]).encode()).digest()[:8], "big")
    chance = random.Random(seed)  # noqa: S311 - a picture, not a secret
    ground, ink, accent = _palette(chance)
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), ground)
    draw = ImageDraw.Draw(image)
    has_title = _is_plain(title)
    chance.choice(_PATTERNS)(draw, (0, 104 if has_title else 24, WIDTH_PX, 212), [ink, accent], chance)
    if has_title:
        _set_title(draw, title, ink)
    author = ", ".join(authors)
    if _is_plain(author):
        draw.text((12, 217), textwrap.shorten(author, 24, placeholder="..."), fill=ink, font=ImageFont.load_default(11))
    draw.text((134, 4), "drawn", fill=ink, font=ImageFont.load_default(8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


def _is_plain(text: str) -> bool:
    return all(character.isascii() or character == "’" for character in unicodedata.normalize("NFC", text))


def _palette(chance: random.Random) -> tuple[Colour, Colour, Colour]:
    ground = tuple(chance.randint(20, 235) for _ in range(3))
    dark_ground = sum(ground) < 380
    ink = (245, 240, 228) if dark_ground else (28, 26, 32)
    accent = tuple((channel + chance.randint(80, 175)) % 256 for channel in ground)
    return (ground[0], ground[1], ground[2]), ink, (accent[0], accent[1], accent[2])


def _set_title(draw: ImageDraw.ImageDraw, title: str, ink: Colour) -> None:
    for size_px, columns in ((22, 12), (18, 15), (15, 18), (12, 23), (10, 28)):
        font = ImageFont.load_default(size_px)
        lines = textwrap.wrap(title, columns, break_long_words=False)
        widest_px = max(draw.textlength(line, font=font) for line in lines)
        if widest_px <= WIDTH_PX - 22 and len(lines) * (size_px + 4) <= 84:
            break
    for row, line in enumerate(lines):
        draw.text((12, 16 + row * (size_px + 4)), line, fill=ink, font=font)


def _stripes(draw: ImageDraw.ImageDraw, box: Box, colours: list[Colour], chance: random.Random) -> None:
    step_px = chance.randint(8, 22)
    for n, top in enumerate(range(box[1], box[3] - step_px, step_px)):
        draw.rectangle((box[0], top, box[2], top + step_px // 2), fill=colours[n % 2])


def _circles(draw: ImageDraw.ImageDraw, box: Box, colours: list[Colour], chance: random.Random) -> None:
    for n in range(chance.randint(4, 9)):
        radius_px = chance.randint(8, 40)
        x, y = (
            chance.randint(0, WIDTH_PX),
            chance.randint(box[1] + radius_px, max(box[1] + radius_px, box[3] - radius_px)),
        )
        edges = (x - radius_px, y - radius_px, x + radius_px, y + radius_px)
        draw.ellipse(edges, outline=colours[n % 2], width=chance.randint(2, 8))


def _tiles(draw: ImageDraw.ImageDraw, box: Box, colours: list[Colour], chance: random.Random) -> None:
    side_px = chance.choice((16, 20, 32))
    for left in range(0, WIDTH_PX, side_px):
        for top in range(box[1], box[3] - side_px + 1, side_px):
            corners = [(left, top), (left + side_px, top), (left, top + side_px), (left + side_px, top + side_px)]
            draw.polygon(chance.sample(corners, 3), fill=chance.choice(colours))


def _sun(draw: ImageDraw.ImageDraw, box: Box, colours: list[Colour], chance: random.Random) -> None:
    middle = chance.randint(50, 110)
    radius_px = chance.randint(24, 44)
    horizon = box[3] - chance.randint(16, 36)
    edges = (middle - radius_px, horizon - radius_px, middle + radius_px, horizon + radius_px)
    draw.pieslice(edges, 180, 360, fill=colours[1])
    draw.rectangle((box[0], horizon, box[2], horizon + 10), fill=colours[0])


_Pattern = Callable[[ImageDraw.ImageDraw, Box, list[Colour], random.Random], None]
_PATTERNS: list[_Pattern] = [_stripes, _circles, _tiles, _sun]


def draw_all(listings: Path, archive: Path) -> int:
    """Draws each cover that a listing names; gives their number."""
    rows = [json.loads(line) for line in listings.read_text(encoding="utf-8").splitlines()]
    covered = [row for row in rows if row.get("cover")]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as covers:
        for row in covered:
            covers.writestr(zipfile.ZipInfo(row["cover"], EPOCH), draw_cover(row["title"], row["authors"]))
    return len(covered)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]), Path(sys.argv[2]))
