"""How listings are read from JSON lines, with covers beside them."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import structlog

from consumer.errors import SettingsError
from consumer.listing_files import ListingLine, read_listings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "listings.jsonl"


def read(file: Path, text: str | bytes, covers: Path | None = None) -> list[ListingLine]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_listings(str(file), covers=covers))


def with_cover(name: object) -> str:
    return json.dumps({"listing_id": "a", "cover": name}) + "\n"


def test_lines_are_read_in_order(file: Path) -> None:
    """Each line is one listing, empty lines are passed over, and each knows where it stood."""
    lines = read(file, '{"listing_id": "a", "title": "活着"}\n\n  \n{"listing_id": "b"}')
    assert lines == [
        ListingLine(f"{file}:1", {"listing_id": "a", "title": "活着"}),
        ListingLine(f"{file}:4", {"listing_id": "b"}),
    ]
    assert [line.listing_id for line in lines] == ["a", "b"]


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"listing_id": "a"}\n')))
    assert list(read_listings("-")) == [ListingLine("-:1", {"listing_id": "a"})]


BROKEN = {
    "words": (b"not json\n", "expected a JSON object, found b'not json\\n'"),
    "cut": (b'{"listing_id": "a"\n', 'expected a JSON object, found b\'{"listing_id": "a"\\n\''),
    "a list": (b"[1, 2]\n", "expected a JSON object, found list"),
    "a number": (b"17\n", "expected a JSON object, found int"),
    "bytes": (b'{"listing_id": "\xff"}\n', 'expected a JSON object, found b\'{"listing_id": "\\xff"}\\n\''),
    "an endless number": (b'{"version": ' + b"9" * 5_000 + b"}\n", 'expected a JSON object, found b\'{"version": 9999'),
    "a tower of lists": (b"[" * 100_000 + b"\n", "expected a JSON object, found b'[[[[["),
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_comes_with_its_error(file: Path, line: bytes, reason: str) -> None:
    """A line that is no JSON object comes with the reason, in its place, and the lines after it are read."""
    before, broken, after = read(file, b'{"listing_id": "a"}\n' + line + b'{"listing_id": "b"}\n')
    assert (before.values, after.values) == ({"listing_id": "a"}, {"listing_id": "b"})
    assert broken.error is not None
    assert broken.error.startswith(f"{file}:2: {reason}")
    assert len(broken.error) < 300
    assert (broken.values, broken.listing_id) == ({}, f"{file}:2")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_covers_come_from_a_folder_or_a_zip(file: Path, tmp_path: Path, kind: str) -> None:
    """A line's cover is the image of that name in the folder or zip; a missing one is no error."""
    covers = tmp_path / "covers"
    (covers / "deep").mkdir(parents=True)
    (covers / "deep" / "a.jpg").write_bytes(b"image")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "covers.zip", "w") as archive:
            archive.write(covers / "deep" / "a.jpg", "deep/a.jpg")
        covers = tmp_path / "covers.zip"
    lines = read(file, with_cover("deep/a.jpg") + with_cover("none.jpg") + with_cover("") + with_cover(None), covers)
    assert lines == [
        ListingLine(f"{file}:1", {"listing_id": "a"}, b"image"),
        *(ListingLine(f"{file}:{number}", {"listing_id": "a"}) for number in (2, 3, 4)),
    ]


def test_without_covers_a_name_is_passed_over(file: Path) -> None:
    """Without a folder or zip, a listing that names a cover has none."""
    assert read(file, with_cover("a.jpg")) == [ListingLine(f"{file}:1", {"listing_id": "a"})]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "a\0b", "x" * 5_000, "."])
def test_a_cover_outside_the_folder_is_not_read(file: Path, tmp_path: Path, name: str) -> None:
    """A name that leads out of the folder, or that no file can have, finds nothing."""
    (tmp_path / "secret").write_bytes(b"secret")
    covers = tmp_path / "covers"
    covers.mkdir()
    (covers / "link").symlink_to(tmp_path / "secret")
    assert read(file, with_cover(name), covers) == [ListingLine(f"{file}:1", {"listing_id": "a"})]


def test_a_zip_that_cannot_be_unpacked_gives_no_cover(file: Path, tmp_path: Path) -> None:
    """A damaged or encrypted entry is a missing cover."""
    covers = tmp_path / "covers.zip"
    with zipfile.ZipFile(covers, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"image" * 100)
        archive.writestr("b.jpg", b"image" * 100)
    data = bytearray(covers.read_bytes())
    start = data.index(b"a.jpg") + 5
    data[start : start + 4] = b"\xff\xff\xff\xff"  # the compressed bytes of the first entry
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[at + 8] |= 1  # the second entry says that it is encrypted
    covers.write_bytes(data)
    lines = read(file, with_cover("a.jpg") + with_cover("b.jpg"), covers)
    assert [line.cover for line in lines] == [None, None]


def test_a_cover_that_is_no_name_is_an_error(file: Path) -> None:
    """A cover that is not a file name comes with its error."""
    line = read(file, with_cover(5))[0]
    assert (line.error, line.listing_id) == (f"{file}:1: cover: expected a file name, found int", "a")


def test_unknown_fields_are_said_once(file: Path) -> None:
    """Each unknown field is warned of once, at its first line; known ones and `deleted` are not."""
    with structlog.testing.capture_logs() as logs:
        read(file, '{"listing_id": "a", "deleted": true}\n{"isbn": 1, "listing_id": "b"}\n{"isbn": 2, "shelf": 3}\n')
    assert [(log["field"], log["first_seen"]) for log in logs] == [("isbn", f"{file}:2"), ("shelf", f"{file}:3")]


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """A file that cannot be read is named, with the reason."""
    with pytest.raises(SettingsError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_listings(str(tmp_path / "none.jsonl")))


def test_covers_that_are_not_there_are_wrong_usage(file: Path, tmp_path: Path) -> None:
    """Covers that are neither folder nor zip are wrong usage, before a line is read."""
    file.write_text("{}")
    for wrong in (tmp_path / "none", file):
        with pytest.raises(SettingsError, match="expected a folder or a zip file, found neither"):
            list(read_listings(str(file), covers=wrong))
