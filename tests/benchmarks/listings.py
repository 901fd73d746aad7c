"""Real listings for the benchmarks and the journey's tests."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

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
