"""Folders of JSON lines and covers to what training needs: listings, tokens, covers and labels, row by row.

A folder is a set: `train.jsonl.gz`, `valid.jsonl.gz` and, where it has covers, `covers.zip`. Only the fields of a
`Listing` can become inputs, so an ISBN or the name of a cover file never does.
"""

import dataclasses
import gzip
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.features import FeatureSettings, InvalidCover, Vocabulary, decode_cover
from model.listing import InvalidListing, Listing, listing_from_mapping
from model.tasks import Task, label_texts, name_key
from model.text import FAMILIES, grams_of

UNLABELLED = -1
_CHAR_FAMILY = FAMILIES.index("char")
_BATCH = 256
_SUBTITLE = re.compile(r"[:(：（]")
_WORD = re.compile(r"[^\W_]+")
_BEGINNING_LETTERS = 40


class DataError(ValueError):
    """A data file cannot be used; the message names file and line, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one part of some sets, in the order of the folders and lines.

    Attributes:
        values: each row's JSON object: where labels are read from.
        listings: the same rows as the service would see them, without cover bytes.
        sets: the name of each row's set.
        covers: uint8 [covers, channels, height, width], and `cover_of` int64 [rows], position in it or -1.
        fingerprint: sha256 over the sha256 of all files read.
    """

    values: list[dict[str, Any]]
    listings: list[Listing]
    sets: list[str]
    covers: NDArray[np.uint8]
    cover_of: NDArray[np.int64]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.listings)

    def none(self) -> "Rows":
        """The same without any row."""
        return dataclasses.replace(self, values=[], listings=[], sets=[], covers=self.covers[:0], cover_of=self.cover_of[:0])

    def by_set(self) -> dict[str, list[dict[str, Any]]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for name, values in zip(self.sets, self.values, strict=True):
            grouped.setdefault(name, []).append(values)
        return grouped


def set_name(folder: Path) -> str:
    """A set is called like its folder, also where that is given as `.`; a link by its own name."""
    return folder.absolute().name


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both, of the same feature settings."""
    moved = np.where(second.cover_of >= 0, second.cover_of + len(first.covers), UNLABELLED)
    return Rows(
        values=first.values + second.values,
        listings=first.listings + second.listings,
        sets=first.sets + second.sets,
        covers=np.concatenate([first.covers, second.covers]),
        cover_of=np.concatenate([first.cover_of, moved]),
        fingerprint=hashlib.sha256(f"{first.fingerprint} {second.fingerprint}".encode()).hexdigest(),
    )


def read_rows(
    folders: Sequence[Path], *, part: str, settings: FeatureSettings, limit: int | None = None, skipped: list[str] | None = None
) -> Rows:
    """Reads one part of every folder.

    Args:
        part: "train" or "valid".
        limit: at most so many rows of each set, for a quick try.
        skipped: where given, each line that cannot be used, and each cover, is left out and told here instead of raised. The
            rows before the end of a truncated file are kept.

    Raises:
        DataError: a file is missing, truncated or not JSON lines of listings, an id occurs twice, or a cover is missing.
    """
    values: list[dict[str, Any]] = []
    listings: list[Listing] = []
    sets: list[str] = []
    covers: list[NDArray[np.uint8]] = []
    cover_of: list[int] = []
    seen: dict[str, str] = {}
    digest = hashlib.sha256()
    for folder in folders:
        path = folder / f"{part}.jsonl.gz"
        cover_names: list[str | None] = []
        for number, line in _lines(path, limit=limit, skipped=skipped):
            where = f"{path}:{number}"
            try:
                row = _json_object(line, where=where)
                listing = _listing(row, where=where)
                if listing.listing_id in seen:
                    raise DataError(f"{where}: listing_id: {listing.listing_id} stands already in {seen[listing.listing_id]}")
            except DataError as error:
                _skip(error, skipped)
                continue
            seen[listing.listing_id] = where
            listings.append(listing)
            values.append(row)
            sets.append(set_name(folder))
            cover_names.append(row.get("cover"))
        for file in (path, folder / "covers.zip"):
            if file.is_file():
                with file.open("rb") as data:
                    digest.update(hashlib.file_digest(data, "sha256").digest())
        for cover in _covers(folder / "covers.zip", cover_names, settings, skipped=skipped):
            cover_of.append(UNLABELLED if cover is None else len(covers))
            if cover is not None:
                covers.append(cover)
    shape = (len(covers), settings.cover_channels, settings.cover_height, settings.cover_width)
    stacked = np.stack(covers) if covers else np.zeros(shape, dtype=np.uint8)
    return Rows(
        values=values,
        listings=listings,
        sets=sets,
        covers=stacked,
        cover_of=np.array(cover_of, dtype=np.int64),
        fingerprint=digest.hexdigest(),
    )


def _skip(error: DataError, skipped: list[str] | None) -> None:
    if skipped is None:
        raise error
    skipped.append(str(error))


def _lines(path: Path, *, limit: int | None, skipped: list[str] | None) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise DataError(f"{path}: expected a file of gzipped JSON lines, found none")
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and number > limit:
                    return
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        _skip(DataError(f"{path}:{number + 1}: expected gzipped text: {error}"), skipped)


def _json_object(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _listing(row: Mapping[str, Any], *, where: str) -> Listing:
    try:
        return listing_from_mapping({**row, "cover": None}, default_version=0)
    except InvalidListing as error:
        raise DataError(f"{where}: {error}") from error


def _covers(
    path: Path, names: Sequence[str | None], settings: FeatureSettings, *, skipped: list[str] | None
) -> Iterator[NDArray[np.uint8] | None]:
    if not any(names):
        yield from (None for _ in names)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                try:
                    yield None if not name else decode_cover(archive.read(name), settings)
                except KeyError as error:
                    _skip(DataError(f"{path}: a row names a cover that is not in it: {error.args[0]}"), skipped)
                    yield None
                except InvalidCover as error:
                    _skip(DataError(f"{path}: {name}: {error}"), skipped)
                    yield None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected the covers as a zip file: {error}") from error


def build_vocabulary(listings: Sequence[Listing], settings: FeatureSettings, *, rows_max: int | None = None) -> Vocabulary:
    """The grams in at least 2 listings (3 for character n-grams) with their idf; the commonest `rows_max` of them."""
    hashes, families = [], []
    for start in range(0, len(listings), _BATCH):
        grams = grams_of(listings[start : start + _BATCH], settings)
        row, family = np.divmod(grams.slots, len(FAMILIES))
        unique, first = np.unique(row << 32 | grams.hashes.astype(np.int64), return_index=True)
        hashes.append((unique & 0xFFFFFFFF).astype(np.uint32))
        families.append(family[first].astype(np.uint8))
    together = np.concatenate(hashes)
    known, first, frequency = np.unique(together, return_index=True, return_counts=True)
    family_of = np.concatenate(families)[first]
    frequent = np.flatnonzero(frequency >= np.where(family_of == _CHAR_FAMILY, 3, 2))
    kept = np.sort(frequent[np.argsort(-frequency[frequent], kind="stable")[: None if rows_max is None else rows_max - 1]])
    idf = np.log((1 + len(listings)) / (1 + frequency[kept])) + 1
    return Vocabulary(hashes=known[kept], idf=idf.astype(np.float16), families=family_of[kept])


def folds_by_title(listings: Sequence[Listing], *, folds: int) -> NDArray[np.int64]:
    """The fold of each row: int64 [rows]. Editions of one title share a fold."""
    return _folds((name_key(listing.title or "") for listing in listings), folds)


def folds_by_beginning(listings: Sequence[Listing], *, folds: int) -> NDArray[np.int64]:
    """The fold of each row: int64 [rows]. Titles that begin alike share a fold: volumes of a work, issues of a journal.

    So what is kept out is new, as `valid` is: there no Gutenberg title has its first 40 letters in common with one of `train`,
    and no Goodreads title what stands before a colon or bracket.
    """
    return _folds((_beginning(listing.title or "") for listing in listings), folds)


def _folds(keys: Iterable[str], folds: int) -> NDArray[np.int64]:
    digests = (hashlib.sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest() for key in keys)
    return np.array([int.from_bytes(digest[:4], "big") % folds for digest in digests], dtype=np.int64)


def _beginning(title: str) -> str:
    """The first letters of a title, without what follows a colon or bracket, spaces, punctuation and case."""
    head = _SUBTITLE.split(title, maxsplit=1)[0]
    return "".join(_WORD.findall((head if _WORD.search(head) else title).casefold()))[:_BEGINNING_LETTERS]


@dataclass(frozen=True, slots=True)
class Labels:
    """One task's labels.

    Attributes:
        values: `single`, `ordinal`: int64 [rows]; `multi`: float32 [rows, labels] of 0 and 1; `regression`: float32 [rows]
            in the head's own scale.
        present: bool [rows], where the row has a label.
    """

    values: NDArray[Any]
    present: NDArray[np.bool_]


def labels_of(task: Task, rows: Rows) -> Labels:
    """Reads a task's labels from the rows of its sets; all others are not present."""
    own = [name in task.entry.sets for name in rows.sets]
    if task.entry.kind == "multi":
        return _multi_labels(task, rows, own)
    values = np.full(len(rows), np.nan)
    for row, mine in enumerate(own):
        if mine:
            value = _value(task, rows.values[row])
            values[row] = np.nan if value is None else value
    present = np.array(np.isfinite(values), dtype=np.bool_)
    values = np.where(present, values, 0.0)
    return Labels(values=values.astype(np.float32 if task.entry.kind == "regression" else np.int64), present=present)


def _multi_labels(task: Task, rows: Rows, own: Sequence[bool]) -> Labels:
    index = {label: column for column, label in enumerate(task.labels)}
    values = np.zeros((len(rows), len(task.labels)), dtype=np.float32)
    for row, mine in enumerate(own):
        if mine:
            for text in label_texts(task.entry, rows.values[row]):
                if text in index:
                    values[row, index[text]] = 1.0
    # A row without any is taken as not labelled rather than as none of all.
    return Labels(values=values, present=np.count_nonzero(values, axis=1) > 0)


def _value(task: Task, row: Mapping[str, Any]) -> float | None:
    entry = task.entry
    if entry.kind == "single":
        texts = label_texts(entry, row)
        if not texts or texts[0] in entry.labels.exclude:
            return None
        label = task.spellings.get(name_key(texts[0]), texts[0]) if entry.field == "authors" else texts[0]
        if label in task.labels:
            return task.labels.index(label)
        return task.labels.index(entry.labels.other) if entry.labels.other is not None else None
    number = row.get(entry.field)
    if not isinstance(number, int | float) or isinstance(number, bool):
        return None
    if entry.kind == "ordinal":
        group = task.groups.get(str(row.get("currency")))
        return None if group is None else group[0] + int(np.searchsorted(entry.bands[str(row["currency"])], number, "right"))
    if entry.scale == "log":
        return float(np.log(number)) if number > 0 else None
    if entry.scale == "rank":
        size = task.rank_sizes.get(str(row.get(entry.rank_within or "")), 1.0)
        return float(np.clip(1.0 - (number - 1.0) / max(size - 1.0, 1.0), 0.0, 1.0))
    return float(number)
