"""The data that ship with the demo, and how a file of one's own is read."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from consumer.demo.broken import BOMB_SIDE_PX, decompression_bomb
from consumer.demo.catalogue import SHIPPED_COVERS, SHIPPED_LISTINGS, own_listings, shipped_listings
from consumer.demo.draw_covers import HEIGHT_PX, WIDTH_PX, draw_cover
from consumer.demo.scenario import events_in_all, percentile, split
from consumer.errors import SettingsError
from model.listing import listing_from_mapping, unknown_fields

ROWS = [json.loads(line) for line in SHIPPED_LISTINGS.read_text(encoding="utf-8").splitlines()]
A_BOOK = '{"listing_id": "1", "title": "Emma"}'


def test_every_shipped_listing_is_valid_and_says_nothing_a_listing_does_not_have() -> None:
    """Every shipped listing has a title, and the fields of the contract alone."""
    for row in ROWS:
        assert not unknown_fields(row)
        assert listing_from_mapping({**row, "cover": None}, default_version=1).title


def test_no_id_and_no_work_comes_twice() -> None:
    """Ids are unique, and so are title and authors together."""
    assert len({row["listing_id"] for row in ROWS}) == len(ROWS)
    assert len({(row["title"], *row["authors"]) for row in ROWS}) == len(ROWS)


def test_the_listings_are_about_five_hundred_in_many_languages() -> None:
    """A newcomer sees more than one script: at least twelve languages, a fifth of the titles in Chinese or Japanese."""
    han_or_kana = [row for row in ROWS if any("\u3040" <= character <= "\u9fff" for character in row["title"])]
    assert 450 <= len(ROWS) <= 600
    assert len({row["language"] for row in ROWS if "language" in row}) >= 12
    assert len(han_or_kana) / len(ROWS) >= 0.2


def test_half_the_listings_have_a_cover_which_decodes() -> None:
    """The archive holds just the covers that listings name; each is a small JPEG of one size."""
    named = [row["cover"] for row in ROWS if "cover" in row]
    with zipfile.ZipFile(SHIPPED_COVERS) as covers:
        assert sorted(covers.namelist()) == sorted(named)
        for name in named:
            with Image.open(io.BytesIO(covers.read(name))) as image:
                image.load()
                assert (image.format, image.size) == ("JPEG", (WIDTH_PX, HEIGHT_PX))
    assert 0.4 <= len(named) / len(ROWS) <= 0.6


def test_the_data_are_small() -> None:
    """Covers stay below 1.5 MB and listings below 150 kB: they are cloned by everyone."""
    assert SHIPPED_COVERS.stat().st_size <= 1_500_000
    assert SHIPPED_LISTINGS.stat().st_size <= 150_000


def test_a_cover_is_drawn_the_same_each_time() -> None:
    """Two drawings of a title are equal, those of two titles are not."""
    assert draw_cover("Emma", ["Jane Austen"]) == draw_cover("Emma", ["Jane Austen"])
    assert draw_cover("Emma", ["Jane Austen"]) != draw_cover("红楼梦", ["曹雪芹"])


def test_covers_travel_with_the_listings() -> None:
    """A shipped listing carries its cover's bytes, and no longer the cover's name."""
    listings = shipped_listings()
    assert [one.listing_id for one in listings] == [row["listing_id"] for row in ROWS]
    assert [one.cover is not None for one in listings] == ["cover" in row for row in ROWS]
    assert not any("cover" in one.values for one in listings)


def test_the_bomb_is_small_in_the_post_and_large_unpacked() -> None:
    """The PNG has some 50 kB and says it has 400 million pixels."""
    bomb = decompression_bomb()
    assert len(bomb) < 60_000
    assert bomb[16:24] == BOMB_SIDE_PX.to_bytes(4, "big") * 2


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    """Blank lines are skipped, a byte order mark is no fault, and cover names stay out."""
    file = tmp_path / "own.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + f'{A_BOOK}\n\n{{"listing_id": "2", "cover": "a.jpg"}}\n'.encode())
    assert [one.values for one in own_listings(file)] == [{"listing_id": "1", "title": "Emma"}, {"listing_id": "2"}]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (f"{A_BOOK}\n{{", ":2", "expected one JSON object"),
        ("[]", ":1", "expected a JSON object, found list"),
        ('{"title": "Emma"}', ":1", "listing_id: expected a non-empty string, found nothing"),
        ('{"listing_id": "1", "price": "dear"}', ":1", "price: expected a number"),
        ('{"listing_id": "1", "deleted": true}', ":1", "found a deletion"),
        (f"{A_BOOK}\n\n{A_BOOK}", ":3", "'1' was already on line 1"),
        ("\n\n", "", "expected one listing a line"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, place: str, words: str) -> None:
    """The message names the file and the line, what was expected and what was found."""
    file = tmp_path / "own.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        own_listings(file)
    assert str(caught.value).startswith(f"{file}{place}: ")
    assert words in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    """A file in another encoding is refused with the line."""
    file = tmp_path / "own.jsonl"
    file.write_bytes('{"listing_id": "1", "title": "Le Père Goriot"}'.encode("latin-1"))
    with pytest.raises(SettingsError, match=":1: expected UTF-8"):
        own_listings(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is a wrong setting, not a crash."""
    with pytest.raises(SettingsError, match="expected a readable file"):
        own_listings(tmp_path / "none.jsonl")


@pytest.mark.parametrize("count", [1, 2, 3, 60, 559])
def test_the_acts_share_all_listings(count: int) -> None:
    """However few there are, each listing is in one act and the steady act has one."""
    listings = shipped_listings()[:count]
    opening, burst, steady = split(listings)
    assert opening + burst + steady == listings
    assert steady


def test_the_total_counts_every_event() -> None:
    """Opening, five times the burst, steady, 40 new prices, one late version, two deletions."""
    assert events_in_all(shipped_listings()[:60], []) == 8 + 5 * 32 + 20 + 40 + 1 + 2


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: of 1 to 100 the 50th percentile is 50, the 99th 99."""
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)
