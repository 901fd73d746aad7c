"""The texts of a whole batch of listings to hashed n-grams, without a Python loop over characters or words.

All texts of a batch are joined, normalised once (NFKC, case folded) and seen as one array of code points. A class table
tells letters from Chinese, Japanese and Korean characters and from the rest; runs of one class are words. With the prefix
sums H[i] = Σ_{j<i} c[j]·B^j (mod 2^64) the hash of any substring is (H[end] - H[start])·B^-start, so the words of a batch
cost a few array operations. n-grams of a fixed n come from Horner's rule over shifted arrays.

Source: Karp & Rabin, IBM J. Res. Dev. 31 (1987), for the rolling hash; Steele et al., OOPSLA 2014, for the finaliser.
"""

import hashlib
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.listing import Listing

# Order is part of the format: a gram's slot is row * len(FAMILIES) + family.
FAMILIES = ("word", "char", "cjk", "author", "publisher", "format", "language", "currency", "year", "description", "name")
WORD, CHAR, CJK, AUTHOR, PUBLISHER, FORMAT, LANGUAGE, CURRENCY, YEAR, DESCRIPTION, NAME = range(len(FAMILIES))
# The families whose tokens carry a field of a listing, by the field's name; the rest is the title's.
FAMILIES_OF_FIELD = {
    "authors": (AUTHOR, NAME), "publisher": (PUBLISHER,), "description": (DESCRIPTION,), "language": (LANGUAGE,),
    "year": (YEAR,), "format": (FORMAT,), "currency": (CURRENCY,),
}  # fmt: skip
# A task on one of them must not see it: see `Task.hidden_input`.
INPUT_FIELDS = tuple(FAMILIES_OF_FIELD)

NO_PLACE = 2**40  # of grams that are not read in order; after every place there is

_SEPARATOR = "\x00"
_SPACE = 32
_OTHER_CLASS, _WORD_CLASS, _CJK_CLASS = 0, 1, 2
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_BASE_INVERSE = pow(_BASE, -1, 2**64)
CJK_RANGES = (
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),  # hangul syllables
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
CJK_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in CJK_RANGES)  # inside the brackets of a regular expression
# ISO 639-2 and common names to ISO 639-1: shops write "eng", "en-US" and "English" for one language.
_LANGUAGES = {
    "eng": "en", "english": "en", "fre": "fr", "fra": "fr", "french": "fr", "ger": "de", "deu": "de", "german": "de",
    "spa": "es", "spanish": "es", "ita": "it", "italian": "it", "por": "pt", "portuguese": "pt", "dut": "nl",
    "nld": "nl", "dutch": "nl", "jpn": "ja", "japanese": "ja", "chi": "zh", "zho": "zh", "chinese": "zh", "kor": "ko",
    "korean": "ko", "rus": "ru", "russian": "ru", "fin": "fi", "finnish": "fi", "swe": "sv", "swedish": "sv",
    "hun": "hu", "lat": "la", "ell": "el", "gre": "el", "epo": "eo", "pol": "pl", "dan": "da", "cat": "ca",
}  # fmt: skip


class TextSettings(Protocol):
    """The part of the feature settings that texts need; every limit bounds the work for one listing."""

    @property
    def title_characters_max(self) -> int: ...
    @property
    def description_characters_max(self) -> int: ...
    @property
    def authors_max(self) -> int: ...
    @property
    def author_characters_max(self) -> int: ...
    @property
    def char_sizes(self) -> tuple[int, int]: ...
    @property
    def cjk_sizes(self) -> tuple[int, int]: ...
    @property
    def cjk_grams_of_names(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Grams:
    """Hashed n-grams of a batch, repeated as often as they occur, in no particular order.

    Attributes:
        hashes: uint32 [grams].
        slots: int64 [grams], row in the batch * len(FAMILIES) + family.
        places: int64 [grams], where a word stands: a title's words, ascending as they are read, then the words of authors' names,
            all in one place; `NO_PLACE` for every other gram. Numbers run through the batch: in a listing only order counts.
    """

    hashes: NDArray[np.uint32]
    slots: NDArray[np.int64]
    places: NDArray[np.int64]


@lru_cache(maxsize=1024)
def language_code(language: str) -> str:
    """The ISO 639-1 code where one is known, else the primary subtag in lower case: "en-US" and "eng" are "en"."""
    primary = language.strip().lower().replace("_", "-").partition("-")[0]
    return _LANGUAGES.get(primary, primary)


def grams_of(listings: Sequence[Listing], settings: TextSettings) -> Grams:
    """All n-grams and whole-field tokens of the listings.

    Word 1- and 2-grams, character n-grams inside words (with the word's edges) and CJK n-grams of the title; words and
    CJK n-grams of the description; words, CJK n-grams and an order-free key of each author ("Last, First" is "First Last");
    publisher, format, language, currency, year and decade as whole tokens. A listing's grams do not depend on its batch.
    """
    parts = _collect(listings, settings)
    codes, ends = _code_points(parts)
    classes = _class_table()[codes]
    segment_of = np.repeat(np.arange(len(parts.rows) + 1), np.diff(ends, prepend=-1)) - 1  # [characters]
    sums = _prefix_sums(codes)
    found = _Found(rows=parts.rows)
    _add_words(found, parts, _runs(classes, sums=sums, segment_of=segment_of))
    titles_end = int(ends[parts.titles]) + 1
    _add_char_grams(found, codes[:titles_end], classes[:titles_end], segment_of, sizes=settings.char_sizes)
    last = parts.titles + parts.descriptions + parts.authors * settings.cjk_grams_of_names
    end = int(ends[last]) + 1
    _add_cjk_grams(found, parts, codes[:end], classes[:end], segment_of, sizes=settings.cjk_sizes)
    _add_whole_fields(found, parts, sums=sums, ends=ends)
    return found.grams()


@dataclass(frozen=True, slots=True)
class _Parts:
    """The batch's texts in the order titles, descriptions, authors, whole fields; row and family of each."""

    texts: list[str]
    rows: NDArray[np.int64]
    titles: int
    descriptions: int
    authors: int
    whole_families: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Maximal runs of one character class: hash, class and segment of each, in text order."""

    hashes: NDArray[np.uint64]
    classes: NDArray[np.uint8]
    segments: NDArray[np.int64]


class _Found:
    """Collects hashes by family."""

    def __init__(self, *, rows: NDArray[np.int64]) -> None:
        self._rows = rows
        self._hashes: list[NDArray[np.uint32]] = []
        self._slots: list[NDArray[np.int64]] = []
        self._places: list[NDArray[np.int64]] = []

    def add(
        self, hashes: NDArray[np.uint64], *, segments: NDArray[np.int64], family: int, salt: str,
        places: int | NDArray[np.int64] = NO_PLACE,
    ) -> None:  # fmt: skip
        self._hashes.append(_finalised(hashes, salt=_salt(salt)))
        self._slots.append(self._rows[segments] * len(FAMILIES) + family)
        self._places.append(np.broadcast_to(np.asarray(places, dtype=np.int64), hashes.shape))

    def grams(self) -> Grams:
        return Grams(hashes=np.concatenate(self._hashes), slots=np.concatenate(self._slots), places=np.concatenate(self._places))


def _collect(listings: Sequence[Listing], settings: TextSettings) -> _Parts:
    title_max, description_max = settings.title_characters_max, settings.description_characters_max
    author_max = settings.author_characters_max
    titles: list[str] = []
    descriptions: list[str] = []
    authors: list[str] = []
    wholes: list[str] = []
    description_rows: list[int] = []
    author_rows: list[int] = []
    whole_rows: list[int] = []
    families: list[int] = []
    for row, listing in enumerate(listings):
        titles.append((listing.title or "")[:title_max])
        if listing.description:
            descriptions.append(listing.description[:description_max])
            description_rows.append(row)
        for author in listing.authors[: settings.authors_max]:
            authors.append(author[:author_max])
            author_rows.append(row)
        for family, text in _whole_fields(listing):
            wholes.append(text[:author_max])
            whole_rows.append(row)
            families.append(family)
    return _Parts(
        texts=list(chain(titles, descriptions, authors, wholes)),
        rows=np.array([*range(len(listings)), *description_rows, *author_rows, *whole_rows], dtype=np.int64),
        titles=len(titles),
        descriptions=len(descriptions),
        authors=len(authors),
        whole_families=np.array(families, dtype=np.int64),
    )


def _whole_fields(listing: Listing) -> list[tuple[int, str]]:
    fields: list[tuple[int, str]] = []
    if listing.publisher and (publisher := listing.publisher.strip()):
        fields.append((PUBLISHER, publisher))
    if listing.format and (form := listing.format.strip()):
        fields.append((FORMAT, form))
    if listing.language and (language := language_code(listing.language)):
        fields.append((LANGUAGE, language))
    if listing.currency and (currency := listing.currency.strip()):
        fields.append((CURRENCY, currency))
    if listing.year is not None:
        fields.append((YEAR, str(listing.year)))
        fields.append((YEAR, f"{listing.year // 10}x"))
    return fields


def _code_points(parts: _Parts) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The normalised text, a separator before and after each segment; the separators' positions [segments + 1]."""
    # Six texts of seven are ASCII, so normalised as they are: one by one takes 0.24 µs a listing, all joined 1.4.
    texts = [text if text.isascii() else unicodedata.normalize("NFKC", text) for text in parts.texts]
    joined = _SEPARATOR.join(["", *texts, ""])
    if joined.count(_SEPARATOR) != len(texts) + 1:
        joined = _SEPARATOR.join(["", *(text.replace(_SEPARATOR, " ") for text in texts), ""])
    codes = np.frombuffer(joined.casefold().encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return codes, np.flatnonzero(codes == 0)


@cache
def _class_table() -> NDArray[np.uint8]:
    """uint8 [1114112]: 1 for letters, digits and their marks, 2 for CJK, 0 for the rest."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(0x30000):  # planes above hold no letters but CJK
        if unicodedata.category(chr(code))[0] in "LNM":
            table[code] = _WORD_CLASS
    for first, last in CJK_RANGES:
        table[first : last + 1] = _CJK_CLASS
    return table


@cache
def _powers(log2_length: int, base: int) -> NDArray[np.uint64]:
    powers = np.full(2**log2_length, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _log2_length(length: int) -> int:
    return max(16, int(length).bit_length())


def _prefix_sums(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * _powers(_log2_length(len(codes)), _BASE)[: len(codes)], out=sums[1:])
    return sums


def _substrings(sums: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    inverse = _powers(_log2_length(len(sums)), _BASE_INVERSE)
    hashes: NDArray[np.uint64] = (sums[ends] - sums[starts]) * inverse[starts]
    return hashes


@cache
def _salt(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def _finalised(hashes: NDArray[np.uint64], *, salt: np.uint64) -> NDArray[np.uint32]:
    """splitmix64's finaliser over hash + salt; its upper half, uint32."""
    mixed = hashes + salt
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed >>= np.uint64(32)
    return mixed.astype(np.uint32)


def _runs(classes: NDArray[np.uint8], *, sums: NDArray[np.uint64], segment_of: NDArray[np.int64]) -> _Runs:
    edges = np.flatnonzero(classes[1:] != classes[:-1]) + 1  # the text begins and ends with a separator
    starts = edges[classes[edges] != _OTHER_CLASS]
    ends = edges[classes[edges - 1] != _OTHER_CLASS]
    return _Runs(hashes=_substrings(sums, starts, ends), classes=classes[starts], segments=segment_of[starts])


def _add_words(found: _Found, parts: _Parts, runs: _Runs) -> None:
    is_word = runs.classes == _WORD_CLASS
    descriptions_end = parts.titles + parts.descriptions
    in_title = runs.segments < parts.titles
    title = np.flatnonzero(is_word & in_title)
    words, segments = runs.hashes[title], runs.segments[title]
    found.add(words, segments=segments, family=WORD, salt="word", places=np.arange(len(words)))
    together = np.flatnonzero(segments[1:] == segments[:-1])
    pairs = words[together] * np.uint64(_BASE) + words[together + 1]
    found.add(pairs, segments=segments[together], family=WORD, salt="word pair")

    described = np.flatnonzero(is_word & ~in_title & (runs.segments < descriptions_end))
    # The salt of the title's words: a word means the same in both, and the table has one row for it.
    found.add(runs.hashes[described], segments=runs.segments[described], family=DESCRIPTION, salt="word")

    first, last = np.searchsorted(runs.segments, [descriptions_end, descriptions_end + parts.authors])
    names, segments = runs.hashes[first:last], runs.segments[first:last]
    found.add(names, segments=segments, family=NAME, salt="author word", places=len(words))
    # A sum does not know the order of its terms. Hashes are finalised first, or "ab" + "c" could equal "a" + "bc".
    terms = np.zeros(len(names) + 1, dtype=np.uint64)
    np.cumsum(_finalised(names, salt=_salt("author term")), dtype=np.uint64, out=terms[1:])
    begin = np.flatnonzero(np.diff(segments, prepend=-1))
    end = np.append(begin[1:], len(segments)).astype(np.int64)
    found.add(terms[end] - terms[begin], segments=segments[begin], family=AUTHOR, salt="author")


def _add_char_grams(
    found: _Found,
    codes: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    segment_of: NDArray[np.int64],
    *,
    sizes: tuple[int, int],
) -> None:
    in_word = classes == _WORD_CLASS
    if not in_word.any():
        return
    symbols = np.where(in_word, codes, _SPACE).astype(np.uint64)  # whatever borders a word looks the same
    hashes = symbols
    valid = in_word
    for size in range(2, sizes[1] + 1):
        hashes = hashes[:-1] * np.uint64(_BASE) + symbols[size - 1 :]
        # The first and last symbol may be a word's edge; those between must be of one word.
        valid = in_word[:-1] | in_word[1:] if size == 2 else _inner(valid, in_word, size=size)
        if size >= sizes[0]:
            at = np.flatnonzero(valid)
            inside = at + in_word[at + 1]  # the first symbol may be the separator before the title
            found.add(hashes[at], segments=segment_of[inside], family=CHAR, salt=f"char {size}")


def _inner(valid: NDArray[np.bool_], in_word: NDArray[np.bool_], *, size: int) -> NDArray[np.bool_]:
    return in_word[1:-1] if size == 3 else valid[:-1] & in_word[size - 2 : -1]


def _add_cjk_grams(
    found: _Found,
    parts: _Parts,
    codes: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    segment_of: NDArray[np.int64],
    *,
    sizes: tuple[int, int],
) -> None:
    is_cjk = classes == _CJK_CLASS
    if not is_cjk.any():
        return
    hashes, valid = codes.astype(np.uint64), is_cjk
    for size in range(1, sizes[1] + 1):
        if size > 1:
            hashes = hashes[:-1] * np.uint64(_BASE) + codes[size - 1 :]
            valid = valid[:-1] & is_cjk[size - 1 :]
        if size >= sizes[0]:
            at = np.flatnonzero(valid)
            segments = segment_of[at]  # ascending
            titles, described = np.searchsorted(segments, [parts.titles, parts.titles + parts.descriptions])
            # A name's signs mean something else than a title's, so they have rows of their own.
            for family, own, salt in (
                (CJK, slice(0, titles), "cjk"),
                (DESCRIPTION, slice(titles, described), "cjk"),
                (NAME, slice(described, None), "author cjk"),
            ):
                found.add(hashes[at[own]], segments=segments[own], family=family, salt=f"{salt} {size}")


def _add_whole_fields(found: _Found, parts: _Parts, *, sums: NDArray[np.uint64], ends: NDArray[np.int64]) -> None:
    first = parts.titles + parts.descriptions + parts.authors
    hashes = _substrings(sums, ends[first:-1] + 1, ends[first + 1 :])
    segments = np.arange(first, len(parts.rows))
    for family in (PUBLISHER, FORMAT, LANGUAGE, CURRENCY, YEAR):
        own = np.flatnonzero(parts.whole_families == family)
        found.add(hashes[own], segments=segments[own], family=family, salt=FAMILIES[family])
