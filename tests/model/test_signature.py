"""The content hash of a listing."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.listing import Listing
from model.signature import content_hash
from tests.model.examples import a_novel

SEEN: dict[str, Any] = {
    "title": "Hard Times",
    "authors": ("Charles", "Dickens"),
    "publisher": "Bradbury & Evans",
    "description": "A sooty town.",
    "language": "fr",
    "year": 1854,
    "format": "Paperback",
    "currency": "USD",
    "cover": b"other bytes",
}
UNSEEN: dict[str, Any] = {"listing_id": "other", "version": 99, "price": 1.0, "page_count": 3, "cover_url": "https://a.example/b"}


def test_every_field_is_known_as_seen_or_unseen() -> None:
    """A field added to Listing must be put on one side."""
    assert set(SEEN) | set(UNSEEN) == {field.name for field in dataclasses.fields(Listing)}


@pytest.mark.parametrize("field", sorted(SEEN))
def test_the_hash_changes_with_whatever_the_model_sees(field: str) -> None:
    """Another value, no value and an empty value are three different contents."""
    empty: dict[str, Any] = {"authors": (), "year": 0, "cover": b""}
    variants = [SEEN[field], () if field == "authors" else None, ("",) if field == "authors" else empty.get(field, "")]
    hashes = {content_hash(dataclasses.replace(a_novel(cover=b"cover"), **{field: value})) for value in variants}
    assert len(hashes | {content_hash(a_novel(cover=b"cover"))}) == 4


@pytest.mark.parametrize("field", sorted(UNSEEN))
def test_the_hash_does_not_change_with_what_the_model_does_not_see(field: str) -> None:
    """A new price, stock or version lets the prediction be reused."""
    assert content_hash(dataclasses.replace(a_novel(), **{field: UNSEEN[field]})) == content_hash(a_novel())


def test_a_fetched_cover_is_its_url() -> None:
    """Where the cover is fetched its URL is content: another one, or none, is another hash."""
    hashes = {content_hash(a_novel(), cover_url=url) for url in (None, "", "https://a.example/1", "https://a.example/2")}
    assert len(hashes) == 4


def test_texts_cannot_slide_between_fields() -> None:
    """The same characters distributed otherwise are another content."""
    one = Listing(listing_id="x", title="ab", publisher="c", authors=("d", "e"))
    moved = [
        Listing(listing_id="x", title="a", publisher="bc", authors=("d", "e")),
        Listing(listing_id="x", title="ab", publisher="c", authors=("de",)),
        Listing(listing_id="x", title="ab", publisher=None, description="c", authors=("d", "e")),
    ]
    assert len({content_hash(listing) for listing in (one, *moved)}) == 4


@given(st.text(), st.text())
def test_any_text_has_a_hash_of_32_digits(title: str, author: str) -> None:
    """Every text can be hashed, and the digits are those of 128 bits."""
    digits = content_hash(Listing(listing_id="x", title=title, authors=(author,)))
    assert len(bytes.fromhex(digits)) == 16


def test_a_lone_surrogate_is_hashed() -> None:
    """JSON may carry half a character; the pipeline must not stop at it."""
    assert content_hash(Listing(listing_id="x", title="\ud800")) != content_hash(Listing(listing_id="x", title="?"))


def test_the_encoding_does_not_change_unnoticed() -> None:
    """Stored hashes are compared with new ones: a change of the encoding recomputes every prediction once."""
    assert content_hash(a_novel(cover=b"cover")) == "907637b614c86cf5f9b4da61580dcf9e"
