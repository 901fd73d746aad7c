"""Listings from files: JSON lines, with covers beside them in a folder or a zip."""

import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import structlog

from consumer.errors import SettingsError
from model.listing import unknown_fields

log = structlog.get_logger(__name__)

# What folders and zips raise on names that they do not have or cannot have, and on entries that are damaged or encrypted.
_NO_COVER = (KeyError, OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class ListingLine:
    """One line of a file: its fields and its cover's bytes, or the reason why it is none."""

    where: str
    values: Mapping[str, Any]
    cover: bytes | None = None
    error: str | None = None

    @property
    def listing_id(self) -> str:
        """The line's id as far as it can be told."""
        return str(self.values.get("listing_id") or self.where)


class Covers:
    """A folder or a zip of cover images, by the names that listings give."""

    def __init__(self, path: Path | None) -> None:
        self._zip: zipfile.ZipFile | None = None
        self._folder: Path | None = None
        if path is None:
            return
        if path.is_dir():
            self._folder = path.resolve()
            return
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise SettingsError(f"--covers {path}: expected a folder or a zip file, found neither ({error})") from error

    def read(self, name: str) -> bytes | None:
        """The image's bytes; None when there is none of this name."""
        try:
            if self._zip is not None:
                return self._zip.read(name)
            if self._folder is not None:
                path = (self._folder / name).resolve()
                return path.read_bytes() if path.is_relative_to(self._folder) else None
        except _NO_COVER:
            return None
        return None


def read_listings(file: str, *, covers: Path | None = None) -> Iterator[ListingLine]:
    """Reads JSON lines; `-` is standard input. A line that is no JSON object comes with its error, it does not end the reading.

    Raises:
        SettingsError: the file or the covers cannot be opened.
    """
    source = Covers(covers)
    warned: set[str] = set()
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them
                yield ListingLine(where, {}, error=f"{where}: expected a JSON object, found {line[:40]!r} ({error})")
                continue
            if not isinstance(values, dict):
                yield ListingLine(where, {}, error=f"{where}: expected a JSON object, found {type(values).__name__}")
                continue
            for name in sorted(unknown_fields(values) - warned):
                warned.add(name)
                log.warning("unknown_field_ignored", field=name, first_seen=where)
            yield _with_cover(where, values, source, warned)


def _with_cover(where: str, values: dict[str, Any], covers: Covers, warned: set[str]) -> ListingLine:
    name = values.pop("cover", None)
    if name is None:
        return ListingLine(where, values)
    if not isinstance(name, str):
        return ListingLine(where, values, error=f"{where}: cover: expected a file name, found {type(name).__name__}")
    cover = covers.read(name)
    if cover is None and "missing cover" not in warned:  # a missing cover is not an error; said once
        warned.add("missing cover")
        log.warning("cover_not_found", cover=name, first_seen=where, hint="name the folder or zip with --covers")
    return ListingLine(where, values, cover)


@contextmanager
def _open(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115  closed below; only the opening is in the try
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror})") from error
    with stream:
        yield stream
