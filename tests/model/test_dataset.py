"""Reading data folders, and what is taken as a label."""

import gzip
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.dataset import DataError, Rows, labels_of, read_rows
from model.features import FeatureSettings
from model.tasks import TaskEntry, resolve
from model.text import grams_of
from tests.model.examples import a_shop_folder, image_bytes, made_up_rows, write_rows

SETTINGS = FeatureSettings()


def read(folder: Path, **options: Any) -> Rows:
    return read_rows([folder], part="train", settings=SETTINGS, **options)


def task(rows: Rows, **values: Any) -> Any:
    entry = TaskEntry.model_validate({"name": "t", "kind": "single", "sets": ["shop"], "field": "category"} | values)
    return resolve(entry, rows.by_set())


def test_rows_listings_and_covers_stand_side_by_side(tmp_path: Path) -> None:
    """Every row has its listing and set, and a cover where it names one."""
    rows = read(a_shop_folder(tmp_path, train=12))
    assert len(rows) == 12
    assert set(rows.sets) == {"shop"}
    assert [place >= 0 for place in rows.cover_of] == [number % 4 == 0 for number in range(12)]
    assert rows.covers.shape == (3, 1, 64, 64)
    assert len(read(tmp_path / "shop", limit=5)) == 5


def test_a_set_is_called_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder is given as the one we are in, and by the link's name where it is a link."""
    folder = a_shop_folder(tmp_path, train=3)
    monkeypatch.chdir(folder)
    assert set(read(Path()).sets) == {"shop"}
    (tmp_path / "linked").symlink_to(folder)
    assert set(read(tmp_path / "linked").sets) == {"linked"}


def test_what_gives_the_label_away_is_no_input(tmp_path: Path) -> None:
    """ISBN, id and the cover's name change nothing that the model sees."""
    plain = made_up_rows(5, first=0, seed=1)
    telling = [row | {"isbn13": "9780000000000", "publisher_prefix": "0-00", "listing_id": f"x-{n}", "price": 1.0,
                      "old_price": 2.0, "sales_rank": n, "rating": 5.0} for n, row in enumerate(plain)]  # fmt: skip
    found = []
    for name, rows in (("plain", plain), ("telling", telling)):
        write_rows(tmp_path / name / "train.jsonl.gz", [row | {"cover": None} for row in rows])
        found.append(grams_of(read(tmp_path / name).listings, SETTINGS))
    np.testing.assert_array_equal(found[0].hashes, found[1].hashes)


def test_labels_are_masked_where_a_row_has_none(tmp_path: Path) -> None:
    """Rows of other sets, without the field, or with a label outside the set, do not count."""
    rows_there: list[dict[str, Any]] = [
        {"listing_id": "1", "category": "A", "tags": ["x", "y"]},
        {"listing_id": "2", "category": "B", "tags": []},
        {"listing_id": "3", "category": None, "tags": ["z"]},
    ]
    write_rows(tmp_path / "shop" / "train.jsonl.gz", rows_there)
    write_rows(tmp_path / "other" / "train.jsonl.gz", [{"listing_id": "4", "category": "A", "tags": ["x"]}])
    rows = read_rows([tmp_path / "shop", tmp_path / "other"], part="train", settings=SETTINGS)
    single = labels_of(task(rows), rows)
    assert single.present.tolist() == [True, True, False, False]
    assert single.values[:2].tolist() == [0, 1]
    multi = labels_of(task(rows, kind="multi", field="tags", labels={"exclude": ["z"]}), rows)
    assert multi.present.tolist() == [True, False, False, False]
    assert multi.values[0].tolist() == [1.0, 1.0]


def test_prices_fall_into_the_bands_of_their_currency(tmp_path: Path) -> None:
    """An edge belongs to the band above it; a currency without bands has no label."""
    prices = [("USD", 8.42), ("USD", 8.43), ("USD", 99.0), ("CNY", 22.0), ("GBP", 5.0), (None, 5.0)]
    write_rows(
        tmp_path / "shop" / "train.jsonl.gz",
        [{"listing_id": str(n), "price": price, "currency": currency} for n, (currency, price) in enumerate(prices)],
    )
    rows = read(tmp_path / "shop")
    labels = labels_of(task(rows, kind="ordinal", field="price", bands={"USD": [8.43, 20], "CNY": [22]}), rows)
    assert labels.present.tolist() == [True, True, True, True, False, False]
    assert labels.values[:4].tolist() == [0, 1, 2, 4]


def test_a_rank_becomes_a_score_within_its_department(tmp_path: Path) -> None:
    """The best seller has 1, the last of its department 0; pages are learned as logarithms."""
    ranks = [("A", 1, 100), ("A", 3, 200), ("A", 2, 0), ("B", 50, None), ("B", 1, 300)]
    write_rows(
        tmp_path / "shop" / "train.jsonl.gz",
        [{"listing_id": str(n), "category": c, "sales_rank": r, "page_count": p} for n, (c, r, p) in enumerate(ranks)],
    )
    rows = read(tmp_path / "shop")
    sales = labels_of(task(rows, kind="regression", field="sales_rank", scale="rank", rank_within="category"), rows)
    assert sales.values.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]
    pages = labels_of(task(rows, kind="regression", field="page_count", scale="log"), rows)
    assert pages.present.tolist() == [True, True, False, False, True]
    assert pages.values[0] == pytest.approx(math.log(100))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A mistyped folder is an error with its path."""
    with pytest.raises(DataError, match=r"nowhere/train\.jsonl\.gz: expected a file of gzipped JSON lines"):
        read(tmp_path / "nowhere")


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    """File and line, so that it can be found."""
    path = tmp_path / "shop" / "train.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(b'{"listing_id": "1"}\n{"listing_id": \n'))
    with pytest.raises(DataError, match=r"train\.jsonl\.gz:2: not JSON"):
        read(tmp_path / "shop")
    path.write_bytes(gzip.compress(b"[1]\n"))
    with pytest.raises(DataError, match=r":1: expected a JSON object, found list"):
        read(tmp_path / "shop")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    """An interrupted download is not taken for a short file."""
    shop = a_shop_folder(tmp_path, train=200)
    path = shop / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz:\d+: expected gzipped text"):
        read(shop)


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    """The listing's own check, with file and line."""
    write_rows(tmp_path / "shop" / "train.jsonl.gz", [{"listing_id": "1"}, {"listing_id": "2", "title": 7}])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz:2: title: expected a string or null, found int 7"):
        read(tmp_path / "shop")


def test_an_id_that_occurs_twice_is_named(tmp_path: Path) -> None:
    """Both places are told."""
    write_rows(tmp_path / "shop" / "train.jsonl.gz", [{"listing_id": "1"}, {"listing_id": "1"}])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz:2: listing_id: 1 stands already in .*:1$"):
        read(tmp_path / "shop")


def test_a_missing_or_broken_cover_is_named(tmp_path: Path) -> None:
    """A row that names a cover which is not there, or no image, is an error."""
    shop = a_shop_folder(tmp_path, train=4)
    with zipfile.ZipFile(shop / "covers.zip", "w") as archive:
        archive.writestr("1.jpg", image_bytes())
    with pytest.raises(DataError, match=r"covers\.zip: a row names a cover that is not in it: .*0\.jpg"):
        read(shop)
    with zipfile.ZipFile(shop / "covers.zip", "w") as archive:
        archive.writestr("0.jpg", b"no image")
    with pytest.raises(DataError, match=r"covers\.zip: 0\.jpg: expected a JPEG, PNG or WebP image"):
        read(shop)
    (shop / "covers.zip").unlink()
    with pytest.raises(DataError, match=r"covers\.zip: expected the covers as a zip file"):
        read(shop)


def test_bad_lines_and_covers_can_be_left_out(tmp_path: Path) -> None:
    """Each is told with its place; the good rows are all there, a row with a bad cover without it."""
    shop = a_shop_folder(tmp_path, train=4)
    path = shop / "train.jsonl.gz"
    good = gzip.decompress(path.read_bytes()).splitlines()
    bad = [b"{", b"[1]", b'{"listing_id": "x", "title": 7}', good[0], b"\xff"]
    path.write_bytes(gzip.compress(b"\n".join([*bad[:2], *good, *bad[2:]]) + b"\n"))
    with zipfile.ZipFile(shop / "covers.zip", "w") as archive:
        archive.writestr("0.jpg", b"no image")
    skipped: list[str] = []
    rows = read_rows([shop], part="train", settings=SETTINGS, skipped=skipped)
    assert [row.listing_id for row in rows.listings] == [json.loads(line)["listing_id"] for line in good]
    assert (rows.cover_of == -1).all()
    told = "\n".join(skipped)
    for expected in (":1: not JSON", ":2: expected a JSON object", ":7: title:", ":8: listing_id:", ":9: not JSON", "0.jpg"):
        assert expected in told
    assert all(place not in told for place in (":3:", ":4:", ":5:", ":6:"))


def test_the_rows_before_a_truncation_can_be_kept(tmp_path: Path) -> None:
    """And the truncation is told."""
    shop = a_shop_folder(tmp_path, train=2000)
    path = shop / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-300])
    skipped: list[str] = []
    rows = read_rows([shop], part="train", settings=SETTINGS, skipped=skipped)
    assert 0 < len(rows) < 2000
    assert any("expected gzipped text" in line for line in skipped)
