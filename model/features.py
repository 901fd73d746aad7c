"""What the model sees: the one path from listings and covers to arrays, used by training and by serving alike.

Every field is tokens: n-grams of the texts, and publisher, author, format, language, currency and year as whole tokens. All
are rows of one embedding table, so a field that is missing is simply absent. Weights are (1 + ln tf)·idf, scaled to length
one within each family and by the family's weight; the words of the title and of the authors' names are scaled together.

A weighted sum does not know the order of its terms, but what reads the words one after the other does (word_order.py): so a
listing's words come first, its title's as they are read, then those of its authors' names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.cover import InvalidCover, decode_cover
from model.listing import Listing
from model.text import AUTHOR, CURRENCY, DESCRIPTION, FAMILIES, FORMAT, LANGUAGE, NAME, PUBLISHER, WORD, YEAR, grams_of

__all__ = ["FeatureExtractor", "FeatureSettings", "Features", "InvalidCover", "Vocabulary", "decode_cover"]

PAD_ID = 0
_WHOLE = (PUBLISHER, FORMAT, LANGUAGE, CURRENCY, YEAR)
# The family that each is scaled with, by the scheme of the settings. In the newer two, the words of title and names are one text,
# of which an author of many words is the greater part. In the newest, names have CJK n-grams, too.
SCALED_WITH = {
    scheme: np.array([with_names if family == NAME else family for family in range(len(FAMILIES))])
    for scheme, with_names in (("grams-1", AUTHOR), ("grams-2", WORD), ("grams-3", WORD))
}
# Of tokens that have no place, those of the title and its authors come first, then the description's, then whole fields: so
# whether a whole field is there moves no other token, and a description only whole fields, which are no words.
_LATER = np.array([{DESCRIPTION: 1}.get(family, 2 * (family in _WHOLE)) for family in range(len(FAMILIES))])
WEIGHED_FAMILIES = tuple(name for family, name in enumerate(FAMILIES) if family != NAME)
# Listings whose grams are made at once: a batch of the service's default size is one, since numpy's calls cost what a few
# listings do; small enough for the CPU's caches.
_CHUNK_LISTINGS = 256
_CHUNK_CHARACTERS = 50_000
_BUCKET_BITS = 20
_LOG_TF = (1.0 + np.log(np.arange(1, 257))).astype(np.float64)


class FeatureSettings(BaseModel):
    """How features are made; part of the bundle's manifest, so that serving makes them as training did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Changes whenever the same text would give other hashes or weights.
    scheme: Literal["grams-1", "grams-2", "grams-3"] = "grams-3"
    family_weights: dict[str, float] = Field(
        default_factory=lambda: {name: {"word": 1.2, "cjk": 1.2, "description": 0.7}.get(name, 1.0) for name in WEIGHED_FAMILIES}
    )
    tokens_max: int = Field(default=320, ge=1, le=4096)
    title_characters_max: int = Field(default=1_000, ge=1)
    description_characters_max: int = Field(default=3_000, ge=0)
    authors_max: int = Field(default=8, ge=0)
    author_characters_max: int = Field(default=200, ge=1)
    char_sizes: tuple[int, int] = (2, 5)
    cjk_sizes: tuple[int, int] = (1, 3)
    cover_channels: Literal[1, 3] = 1
    cover_height: int = Field(default=64, ge=8, le=512)
    cover_width: int = Field(default=64, ge=8, le=512)

    @property
    def cjk_grams_of_names(self) -> bool:
        """Whether authors' names, too, are taken apart where they are written without spaces."""
        return self.scheme == "grams-3"


class Vocabulary:
    """The table's rows by hash: row 0 is padding, rows 1.. are the known grams in the order of their hashes.

    Args:
        hashes: uint32 [rows - 1], ascending, without repetition.
        idf: float16 [rows - 1].
        families: uint8 [rows - 1], index in `text.FAMILIES` of the family a gram was first counted in.

    Raises:
        ValueError: the arrays are not what is said above.
    """

    def __init__(self, *, hashes: NDArray[np.uint32], idf: NDArray[np.float16], families: NDArray[np.uint8]) -> None:
        if hashes.dtype != np.uint32 or hashes.ndim != 1 or np.any(hashes[1:] <= hashes[:-1]):
            raise ValueError("vocabulary: expected ascending uint32 hashes")
        for name, array, dtype in (("idf", idf, np.float16), ("families", families, np.uint8)):
            if array.dtype != dtype or array.shape != hashes.shape:
                raise ValueError(
                    f"vocabulary: expected {name} as {np.dtype(dtype)} {hashes.shape}, found {array.dtype} {array.shape}"
                )
        self.hashes = hashes
        self.idf = idf
        self.families = families

    @property
    def rows(self) -> int:
        """Rows of the embedding table, padding included."""
        return len(self.hashes) + 1

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads what `save` wrote; nothing is unpickled.

        Raises:
            ValueError: the file is not a vocabulary.
        """
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"hashes", "idf", "families"} - set(arrays.files)
            if missing:
                raise ValueError(f"{path.name}: expected the arrays hashes, idf and families, found no {sorted(missing)}")
            return cls(hashes=arrays["hashes"], idf=arrays["idf"], families=arrays["families"])

    def kept(self, rows: NDArray[np.integer[Any]]) -> "Vocabulary":
        """Only some rows of the table, given ascending; padding is kept without being asked for."""
        at = rows[rows != PAD_ID] - 1
        return Vocabulary(hashes=self.hashes[at], idf=self.idf[at], families=self.families[at])

    def save(self, path: Path) -> None:
        np.savez_compressed(path, hashes=self.hashes, idf=self.idf, families=self.families)

    def find(self, hashes: NDArray[np.uint32]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Which of the hashes are known: their positions in `hashes` and their rows in the table."""
        occupied, first, probes = self._buckets
        buckets = hashes >> np.uint32(32 - _BUCKET_BITS)
        at = np.flatnonzero(occupied[buckets])  # a twelfth of the buckets holds a gram: most unknown ones end here
        wanted = hashes[at]
        place = first[buckets[at]]
        # The hashes of a bucket are ascending, so the place wanted is one past those that are smaller.
        padded = self._padded_hashes
        for _ in range(probes - 1):
            place = place + (padded[place] < wanted)
        hit = (padded[place] == wanted) & (place < len(self.hashes))  # the end's filler is itself a possible hash
        return at[hit], place[hit].astype(np.int64) + 1

    @cached_property
    def _buckets(self) -> tuple[NDArray[np.bool_], NDArray[np.int32], int]:
        buckets = (self.hashes >> np.uint32(32 - _BUCKET_BITS)).astype(np.int64)
        counts = np.bincount(buckets, minlength=2**_BUCKET_BITS)
        first = (np.cumsum(counts) - counts).astype(np.int32)
        return counts > 0, first, int(counts.max(initial=1))

    @cached_property
    def _padded_hashes(self) -> NDArray[np.uint32]:
        return np.append(self.hashes, np.uint32(0xFFFFFFFF))

    @cached_property
    def idf_by_row(self) -> NDArray[np.float64]:
        """float64 [rows]: exact, since float16 values are; row 0 has none."""
        return np.concatenate([[0.0], self.idf.astype(np.float64)])


@dataclass(frozen=True, slots=True)
class Features:
    """A batch as the model's graph takes it; the fields' names are the graph's inputs.

    Attributes:
        token_ids: int32 [batch, tokens], right-padded with PAD_ID.
        token_weights: float32 [batch, tokens], 0 where padded.
        cover: uint8 [batch, channels, height, width], 0 where there is none.
        cover_present: float32 [batch, 1], 1 or 0.
    """

    token_ids: NDArray[np.int32]
    token_weights: NDArray[np.float32]
    cover: NDArray[np.uint8]
    cover_present: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.token_ids)

    def as_feed(self) -> dict[str, NDArray[Any]]:
        """The graph's inputs by name."""
        return {
            "token_ids": self.token_ids,
            "token_weights": self.token_weights,
            "cover": self.cover,
            "cover_present": self.cover_present,
        }

    def rows(self, index: slice | NDArray[np.integer[Any]]) -> "Features":
        """The rows of a slice or an array of positions, without the columns that are padding in all of them."""
        ids = self.token_ids[index]
        used = np.flatnonzero((ids != PAD_ID).any(axis=0))
        width = max(1, int(used[-1]) + 1 if len(used) else 1)
        return Features(
            token_ids=np.ascontiguousarray(ids[:, :width]),
            token_weights=np.ascontiguousarray(self.token_weights[index][:, :width]),
            cover=self.cover[index],
            cover_present=self.cover_present[index],
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """The known tokens of a batch, flat: listing by listing, a listing's words first.

    First the title's words as they are read, each where it stands for the first time, then the words of authors' names by table
    row. The rest follows by table row and family: what is of title and authors, the description, whole fields.

    Attributes:
        ids: int64 [tokens], rows of the table.
        weights: float32 [tokens].
        families: int64 [tokens].
        counts: int64 [batch], tokens of each listing.
        words: int64 [batch], how many of them, from the first on, are words of title and names.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    families: NDArray[np.int64]
    counts: NDArray[np.int64]
    words: NDArray[np.int64]

    @property
    def listings(self) -> NDArray[np.int64]:
        """int64 [tokens], the row of the batch that each token is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def places(self) -> NDArray[np.int64]:
        """int64 [tokens], how many tokens of its listing come before each."""
        return np.arange(len(self.ids)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)

    @property
    def is_word(self) -> NDArray[np.bool_]:
        """bool [tokens], whether each is a word of names or title."""
        return self.places < np.repeat(self.words, self.counts)

    def kept(self, mask: NDArray[np.bool_]) -> "Tokens":
        """Only some tokens, bool [tokens], of the same listings in the same order."""
        listings = self.listings
        return Tokens(
            ids=self.ids[mask],
            weights=self.weights[mask],
            families=self.families[mask],
            counts=np.bincount(listings[mask], minlength=len(self.counts)),
            words=np.bincount(listings[mask & self.is_word], minlength=len(self.counts)),
        )


class FeatureExtractor:
    """Listings and covers to `Features`. Holds no state between calls; may be shared by threads."""

    def __init__(self, settings: FeatureSettings, vocabulary: Vocabulary) -> None:
        wrong = set(settings.family_weights) ^ set(WEIGHED_FAMILIES)
        if wrong:
            expected = ", ".join(WEIGHED_FAMILIES)
            raise ValueError(f"family_weights: expected a weight for each of {expected}; wrong: {sorted(wrong)}")
        self.settings = settings
        self.vocabulary = vocabulary
        self._scaled_with = SCALED_WITH[settings.scheme]
        weights = [settings.family_weights[FAMILIES[family]] for family in self._scaled_with]
        self._family_weights = np.array(weights, dtype=np.float64)

    def extract(self, listings: Sequence[Listing], covers: Sequence[NDArray[np.uint8] | None]) -> Features:
        """The features of a batch; a row's do not depend on the rows around it.

        Args:
            covers: what `decode_cover` returned for each listing, None where it has no usable cover.

        Raises:
            ValueError: listings and covers differ in number, or a cover has another shape than the settings say.
        """
        if len(listings) != len(covers):
            raise ValueError(f"expected a cover or None for each of {len(listings)} listings, found {len(covers)}")
        token_ids, token_weights = _padded(self.tokens(listings))
        cover, cover_present = self._stacked(covers)
        return Features(token_ids=token_ids, token_weights=token_weights, cover=cover, cover_present=cover_present)

    def tokens(self, listings: Sequence[Listing]) -> Tokens:
        """The tokens of a batch before padding, each with its family: what training drops fields from."""
        chunks = [self._chunk_tokens(listings[start:end]) for start, end in _chunks(listings)]
        if not chunks:
            none = np.zeros(0, dtype=np.int64)
            return Tokens(ids=none, weights=none.astype(np.float32), families=none, counts=none, words=none)
        return Tokens(
            ids=np.concatenate([chunk.ids for chunk in chunks]),
            weights=np.concatenate([chunk.weights for chunk in chunks]),
            families=np.concatenate([chunk.families for chunk in chunks]),
            counts=np.concatenate([chunk.counts for chunk in chunks]),
            words=np.concatenate([chunk.words for chunk in chunks]),
        )

    def _chunk_tokens(self, listings: Sequence[Listing]) -> Tokens:
        grams = grams_of(listings, self.settings)
        found, rows = self.vocabulary.find(grams.hashes)
        # One sort by (listing, table row, family, place) brings repetitions together, that which is read first foremost.
        families = np.int64(len(FAMILIES))
        listing, family = _divided(grams.slots[found], families)
        no_place = len(grams.hashes) + 1  # as after every place as NO_PLACE, but small enough for the keys
        bits = no_place.bit_length()
        slots = (listing * np.int64(self.vocabulary.rows) + rows) * families + family
        keys = np.sort((slots << bits) | np.minimum(grams.places[found], no_place))
        slots = keys >> bits
        begin = np.flatnonzero(np.diff(slots, prepend=-1))
        times = np.diff(np.append(begin, len(slots)))
        places = keys[begin] & (2**bits - 1)
        rest, family = _divided(slots[begin], families)
        listing, ids = _divided(rest, np.int64(self.vocabulary.rows))
        raw = _LOG_TF[np.minimum(times, len(_LOG_TF)) - 1] * self.vocabulary.idf_by_row[ids]
        slots = listing * families + self._scaled_with[family]
        # bincount adds in order, so a row's sums do not depend on where it stands in the batch.
        lengths = np.sqrt(np.bincount(slots, weights=raw * raw, minlength=len(listings) * len(FAMILIES)))
        weights = (raw / lengths[slots] * self._family_weights[family]).astype(np.float32)
        kept = _heaviest(weights, np.bincount(listing, minlength=len(listings)), self.settings.tokens_max)
        order = _words_first(listing, family, places, no_place=no_place)
        order = order[kept[order]]
        listing = listing[order]
        return Tokens(
            ids=ids[order],
            weights=weights[order],
            families=family[order],
            counts=np.bincount(listing, minlength=len(listings)),
            words=np.bincount(listing[places[order] < no_place], minlength=len(listings)),
        )

    def _stacked(self, covers: Sequence[NDArray[np.uint8] | None]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        shape = (self.settings.cover_channels, self.settings.cover_height, self.settings.cover_width)
        stacked = np.zeros((len(covers), *shape), dtype=np.uint8)
        present = np.zeros((len(covers), 1), dtype=np.float32)
        for row, cover in enumerate(covers):
            if cover is None:
                continue
            if cover.shape != shape or cover.dtype != np.uint8:
                raise ValueError(f"cover of row {row}: expected uint8 {shape}, found {cover.dtype} {cover.shape}")
            stacked[row] = cover
            present[row] = 1.0
        return stacked, present


def _divided(numbers: NDArray[np.int64], by: np.int64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Quotients and remainders; numpy has no fast `divmod` by a constant, but a fast `//`."""
    quotients = numbers // by
    return quotients, numbers - quotients * by


def _chunks(listings: Sequence[Listing]) -> Iterator[tuple[int, int]]:
    """Cuts a batch where the arrays would become large: one character may become 18 by normalisation (U+FDFA)."""
    start, characters = 0, 0
    for place, listing in enumerate(listings):
        if place - start >= _CHUNK_LISTINGS or characters > _CHUNK_CHARACTERS:
            yield start, place
            start, characters = place, 0
        characters += len(listing.title or "") + len(listing.description or "")
    if listings:
        yield start, len(listings)


def _heaviest(weights: NDArray[np.float32], counts: NDArray[np.int64], tokens_max: int) -> NDArray[np.bool_]:
    """Which tokens stay, bool [tokens]: the heaviest of rows that have too many, among equals the first by table row."""
    keep = np.ones(len(weights), dtype=np.bool_)
    ends = np.cumsum(counts)
    for row in np.flatnonzero(counts > tokens_max):
        start, end = ends[row] - counts[row], ends[row]
        order = np.argsort(-weights[start:end], kind="stable")
        keep[start + order[tokens_max:]] = False
    return keep


def _words_first(
    listing: NDArray[np.int64], family: NDArray[np.int64], places: NDArray[np.int64], *, no_place: int
) -> NDArray[np.int64]:
    """Positions int64 [tokens] in the order of `Tokens`, of tokens that are sorted by listing, table row and family."""
    places = np.where(places < no_place, places, no_place + _LATER[family])
    bits = len(places).bit_length()
    # A sort of numbers that hold their positions takes a fraction of the time of an argsort.
    keys = np.sort(((listing * np.int64(no_place + 3) + places) << bits) | np.arange(len(places)))
    order: NDArray[np.int64] = keys & (2**bits - 1)
    return order


def _padded(tokens: Tokens) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    batch, width = len(tokens.counts), max(1, int(tokens.counts.max(initial=0)))
    ids = np.full((batch, width), PAD_ID, dtype=np.int32)
    weights = np.zeros((batch, width), dtype=np.float32)
    row, column = tokens.listings, tokens.places
    ids[row, column] = tokens.ids
    weights[row, column] = tokens.weights
    return ids, weights
