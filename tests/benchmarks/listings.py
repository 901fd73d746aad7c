"""Real listings for the benchmarks and the journey's tests."""

import gzip
import json
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SETS = ("bookdepository", "douban-zh", "goodreads", "gutenberg")
FIELDS = ("listing_id", "title", "authors", "publisher", "description", "price", "currency", "page_count", "language", "year")


def shipped_listings() -> list[dict[str, Any]]:
    """The listings that ship with the demo."""
    lines = (ROOT / "consumer/demo/listings.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def real_listings(count: int) -> list[dict[str, Any]]:
    """As many from each data set where those are at hand, else what ships with the project, in several editions."""
    rows = _from_data_sets(count) if DATA.is_dir() else _editions(count)
    return [{"version": 1, **{name: row.get(name) for name in FIELDS}} for row in rows]


def real_covers(count: int) -> list[bytes]:
    """Covers as JPEGs of 200 x 300, as shops keep them: real ones where the data sets are at hand, else noise."""
    if not DATA.is_dir():
        noise = np.random.default_rng(0).integers(0, 256, (count, 30, 20, 3), dtype=np.uint8)
        return [_jpeg(Image.fromarray(one)) for one in noise]
    with ZipFile(DATA / SETS[0] / "covers.zip") as covers:
        names = [name for name in covers.namelist() if not name.endswith("/")][:count]
        return [_jpeg(Image.open(BytesIO(covers.read(name)))) for name in names]


def _jpeg(image: Image.Image) -> bytes:
    out = BytesIO()
    image.convert("RGB").resize((200, 300)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _from_data_sets(count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(SETS):
        share = (count - len(rows)) // (len(SETS) - number)
        part = "valid" if share <= 900 else "train"  # the valid parts hold 900 rows and more
        with gzip.open(DATA / name / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in islice(lines, share)]
    return rows


def _editions(count: int) -> list[dict[str, Any]]:
    shipped = shipped_listings()
    rows = [
        {**row, "listing_id": f"{row['listing_id']}-{edition}", "title": f"{row['title']} ({edition})"}
        for edition in range(1, count // len(shipped) + 2)
        for row in shipped
    ]
    return rows[:count]
