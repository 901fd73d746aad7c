"""Named listings, covers and a small made-up data folder for the model's tests."""

import gzip
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.dataset import build_vocabulary
from model.features import FeatureExtractor, FeatureSettings
from model.listing import Listing

SUBJECTS = {
    "Cooking": ["bread", "soup", "kitchen", "baking", "vegetables"],
    "Travel": ["islands", "railway", "mountains", "harbour", "desert"],
    "Mathematics": ["algebra", "topology", "numbers", "geometry", "proofs"],
}
AUTHORS = ["Ada Stone", "Bruno Keller", "Chen Wei", "Dora Lind"]
PUBLISHERS = ["North Press", "Harbour Books", "Quill & Son"]

TASK_FILE = """
[bundle]
name = "tiny"

[training]
table_rows = 2000
table_width = 12
hidden_width = 16
embedding_width = 8
epochs = 12
averaged_epochs = 2
batch_rows = 64
broad_width = 20

[[task]]
name = "subject"
kind = "single"
sets = ["shop"]
field = "category"
leans_on = "themes"
broad = true

[[task]]
name = "themes"
kind = "multi"
sets = ["shop"]
field = "tags"

[[task]]
name = "publisher"
kind = "single"
sets = ["shop"]
field = "publisher"
asked_only_where_missing = true

[[task]]
name = "price_band"
kind = "ordinal"
sets = ["shop"]
field = "price"
bands = { EUR = [10, 20] }

[[task]]
name = "page_count"
kind = "regression"
sets = ["shop"]
field = "page_count"
scale = "log"
value_bands = [150, 500]
"""
# A language model teaches the first two tasks.
TAUGHT_TASK_FILE = (
    TASK_FILE.replace("[training]\n", "[training]\nmade_up_titles = 300\n")
    .replace('field = "category"\n', 'field = "category"\ntaught_share = 0.5\n')
    .replace('field = "tags"\n', 'field = "tags"\ntaught_share = 0.5\n')
)


def a_novel(**changes: Any) -> Listing:
    values: dict[str, Any] = {
        "listing_id": "pg-98",
        "title": "A Tale of Two Cities",
        "authors": ("Charles Dickens",),
        "publisher": "Chapman & Hall",
        "description": "Paris and London in the years of the revolution.",
        "language": "en",
        "year": 1859,
        "format": "Hardback",
        "currency": "GBP",
    }
    return Listing(**(values | changes))


def a_chinese_classic(**changes: Any) -> Listing:
    values: dict[str, Any] = {"listing_id": "db-1", "title": "红楼梦 (上下册)", "authors": ("曹雪芹",), "language": "zh"}
    return Listing(**(values | changes))


def an_empty_listing() -> Listing:
    return Listing(listing_id="nothing")


def a_shelf() -> list[Listing]:
    """Listings in several scripts, with and without each field."""
    return [
        a_novel(),
        a_chinese_classic(),
        an_empty_listing(),
        Listing(listing_id="jp", title="こころ", authors=("夏目漱石",), year=1914),
        Listing(listing_id="fr", title="Les Misérables, tome Ⅰ", authors=("Hugo, Victor", "anonymous"), language="fre"),
        Listing(listing_id="lone", title="a", publisher="  ", format="Paperback", currency="USD"),
    ]


def an_extractor(**settings: Any) -> FeatureExtractor:
    """Knows every gram that occurs in two copies of the shelf."""
    chosen = FeatureSettings(**settings)
    return FeatureExtractor(chosen, build_vocabulary(a_shelf() * 3, chosen, rows_max=5000))


def image_bytes(kind: str = "JPEG", *, size: tuple[int, int] = (120, 160), mode: str = "RGB", **options: Any) -> bytes:
    """An encoded image with a gradient."""
    width, height = size
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(ramp).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def made_up_rows(count: int, *, first: int, seed: int) -> list[dict[str, Any]]:
    """Listings whose subject shows in the title, whose publisher goes with the subject and whose length with the price."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(first, first + count):
        place = int(random.integers(len(SUBJECTS)))
        subject, words = list(SUBJECTS.items())[place]
        chosen = random.choice(words, 2, replace=False)
        band = int(random.integers(3))
        rows.append(
            {
                "listing_id": f"shop-{number}",
                "title": f"The {chosen[0]} and {chosen[1]} book, volume {['small', 'plain', 'grand'][band]} {number % 7}",
                "authors": [AUTHORS[int(random.integers(len(AUTHORS)))]],
                "publisher": PUBLISHERS[place],
                "category": subject,
                "tags": sorted({subject, str(chosen[0])}),
                "price": [6.0, 15.0, 40.0][band],
                "currency": "EUR",
                "page_count": [100, 250, 700][band],
                "language": "en",
                "isbn13": f"978{PUBLISHERS.index(PUBLISHERS[place])}{number:09d}",
                "cover": f"{number}.jpg" if number % 4 == 0 else None,
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def a_shop_folder(folder: Path, *, train: int = 400, valid: int = 120) -> Path:
    """A set named `shop`, with covers for a quarter of the rows."""
    shop = folder / "shop"
    parts = {"train": made_up_rows(train, first=0, seed=1), "valid": made_up_rows(valid, first=train, seed=2)}
    for part, rows in parts.items():
        write_rows(shop / f"{part}.jsonl.gz", rows)
    with zipfile.ZipFile(shop / "covers.zip", "w") as archive:
        for row in (*parts["train"], *parts["valid"]):
            if row["cover"]:
                archive.writestr(row["cover"], image_bytes(size=(24, 32)))
    return shop
