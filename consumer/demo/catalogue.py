"""The listings that the demo publishes: those that ship with it, or a file of one's own."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumer.errors import SettingsError
from model.listing import InvalidListing, listing_from_mapping

FOLDER = Path(__file__).parent
SHIPPED_LISTINGS = FOLDER / "listings.jsonl"
SHIPPED_COVERS = FOLDER / "covers.zip"
FILE_BYTES_MAX = 200_000_000


@dataclass(frozen=True, slots=True)
class DemoListing:
    """One listing as `Publisher.publish` takes it."""

    values: dict[str, Any]
    cover: bytes | None

    @property
    def listing_id(self) -> str:
        return str(self.values["listing_id"])

    @property
    def title(self) -> str:
        return str(self.values.get("title") or "")


def shipped_listings() -> list[DemoListing]:
    """The public-domain works that come with the project, with the covers that were drawn for half of them."""
    with zipfile.ZipFile(SHIPPED_COVERS) as covers:
        rows = _read_rows(SHIPPED_LISTINGS)
        return [
            DemoListing(row, covers.read(row.pop("cover")) if "cover" in row else None) for row in (dict(row) for row in rows)
        ]


def own_listings(path: Path) -> list[DemoListing]:
    """The listings of a JSON lines file. Covers that it names stay out: `consumer publish --covers` sends them.

    Raises:
        SettingsError: the file cannot be read or a line is not a listing; names the file and the line.
    """
    rows = [{name: value for name, value in row.items() if name != "cover"} for row in _read_rows(path)]
    if not rows:
        raise SettingsError(f"{path}: expected one listing a line as JSON, found no line")
    return [DemoListing(row, None) for row in rows]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise SettingsError(f"{path}: expected at most {FILE_BYTES_MAX:,} bytes, found {path.stat().st_size:,}")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SettingsError(f"{path}: expected a readable file of JSON lines, found: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _read_row(line, where=f"{path}:{number}")
        former = line_of.setdefault(row["listing_id"], number)
        if former != number:
            raise SettingsError(f"{path}:{number}: listing_id {row['listing_id']!r} was already on line {former}")
        rows.append(row)
    return rows


def _read_row(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where}: expected UTF-8, found {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where}: expected one JSON object, found: {error}") from error
    if not isinstance(row, dict):
        raise SettingsError(f"{where}: expected a JSON object, found {type(row).__name__}")
    if row.get("deleted"):
        raise SettingsError(f"{where}: expected a listing, found a deletion; `consumer publish` sends those")
    try:
        listing_from_mapping(row, default_version=0)
    except InvalidListing as error:
        raise SettingsError(f"{where}: {error}") from error
    return row
