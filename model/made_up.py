"""Titles that no book has, to ask a teacher about: it says more the more it is asked, and books are too few."""

import string
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from model.listing import Listing

_KNOWN_SHARE = 0.8  # of beginnings that are of the first listings
_JOINED, _SHORTENED = 0.6, 0.2  # the others keep their title and change their author
_LEFT_OUT = (0.1, 0.4)  # the least and the greatest chance of a word
_NO_AUTHOR, _OWN_AUTHOR = 0.4, 0.3  # the others have another's


def made_up_listings(known: Sequence[Listing], others: Sequence[Listing], *, count: int, seed: int) -> list[Listing]:
    """So many listings with a title and mostly an author, made of the words of real ones; none where no real one has a title.

    Two titles joined at a word that both have, or anywhere where no other title has it; words left out; another author.

    Args:
        known: what the teacher has learned from: most beginnings and all strange authors are theirs.
        others: what else the shop has.
    """
    first = [each for each in known if each.title and each.title.split()]
    every = first + [each for each in others if each.title and each.title.split()]
    titles = [(each.title or "").split() for each in every]
    inside = _places(titles)
    random = np.random.default_rng(seed)

    def one() -> Listing:
        place = _any(random, first) if first and random.random() < _KNOWN_SHARE else _any(random, every)
        words, kind = titles[place], random.random()
        if kind < _JOINED and len(words) > 1:
            at = int(random.integers(1, len(words)))
            shared = inside[_bare(words[at])]
            if len(shared) > 1:
                other, start = shared[_any(random, shared)]
                title = words[:at] + titles[other][start:]
            else:
                other = _any(random, every)
                title = words[: at + 1] + titles[other][_any(random, titles[other]) :]
            authors = own_or_other(place if random.random() < 0.5 else other)
        elif kind < _JOINED + _SHORTENED:
            kept = random.random(len(words)) > random.uniform(*_LEFT_OUT)
            title, authors = [word for word, stays in zip(words, kept, strict=True) if stays], own_or_other(place)
        else:
            title, authors = words, another()
        return Listing(listing_id="made-up", title=" ".join(title), authors=authors)

    def own_or_other(place: int) -> tuple[str, ...]:
        chance = random.random()
        if chance < _NO_AUTHOR:
            return ()
        return every[place].authors if chance < _NO_AUTHOR + _OWN_AUTHOR else another()

    def another() -> tuple[str, ...]:
        return first[_any(random, first)].authors if first else ()

    return [one() for _ in range(count)] if every else []


def _places(titles: Sequence[Sequence[str]]) -> dict[str, list[tuple[int, int]]]:
    """Where each word stands inside titles, as (title, place): not first, and last only in titles of two words."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for title, words in enumerate(titles):
        for place in range(1, len(words)):
            if place < len(words) - 1 or len(words) == 2:
                places[_bare(words[place])].append((title, place))
    return places


def _bare(word: str) -> str:
    return word.casefold().strip(string.punctuation)


def _any(random: np.random.Generator, choices: Sequence[object]) -> int:
    return int(random.integers(len(choices)))
