"""How a listing is read from loosely typed data, and what is said of data that are none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.listing import InvalidListing, Listing, listing_from_mapping, unknown_fields

WHOLE: dict[str, Any] = {
    "listing_id": "bd-1",
    "version": 17,
    "title": "Emma",
    "authors": ["Jane Austen", "A. Editor"],
    "publisher": "John Murray",
    "description": "Handsome, clever, and rich.",
    "price": 8.5,
    "currency": "GBP",
    "page_count": 474,
    "language": "en",
    "year": 1815,
    "format": "Hardback",
    "cover": b"image",
    "cover_url": "https://covers.example/emma.jpg",
}


def read(**values: Any) -> Listing:
    return listing_from_mapping({"listing_id": "bd-1", **values}, default_version=5)


def test_every_field_is_read() -> None:
    """A listing has every field that the data have, authors in their order."""
    expected = Listing(**{**WHOLE, "authors": ("Jane Austen", "A. Editor")})
    assert listing_from_mapping(WHOLE, default_version=5) == expected


def test_all_but_the_id_may_be_missing() -> None:
    """Fields that are absent or null are None, there are no authors, and the version is the default."""
    assert read() == Listing("bd-1", 5)
    assert read(**dict.fromkeys(WHOLE.keys() - {"listing_id"})) == Listing("bd-1", 5)


def test_unknown_fields_are_passed_over() -> None:
    """Fields that a listing does not have change nothing, and can be named."""
    assert read(isbn="978", shelf={"row": 4}) == Listing("bd-1", 5)
    assert unknown_fields(["listing_id", "isbn", "deleted", "cover", "shelf"]) == {"isbn", "shelf"}


def test_a_cover_beside_the_data_is_taken_where_they_hold_none() -> None:
    """Bytes in the data win over a cover beside them; what is no bytes there is no cover."""
    assert listing_from_mapping({"listing_id": "x", "cover": b"in"}, default_version=0, cover=b"beside").cover == b"in"
    assert listing_from_mapping({"listing_id": "x"}, default_version=0, cover=b"beside").cover == b"beside"
    assert read(cover="file.jpg").cover is None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("version", 3.0, 3),
        ("version", 0, 0),
        ("version", -(2**63), -(2**63)),
        ("version", 2**63 - 1, 2**63 - 1),
        ("page_count", 300.0, 300),
        ("year", -44, -44),
        ("price", 8, 8.0),
        ("price", 0, 0.0),
        ("price", -1.5, -1.5),
        ("authors", ("A", "B"), ("A", "B")),
        ("authors", [], ()),
        ("title", "", ""),
        ("title", "x" * 10_000, "x" * 10_000),
        ("authors", ["x"] * 1_000, ("x",) * 1_000),
    ],
)
def test_what_a_field_may_be(field: str, value: Any, expected: Any) -> None:
    """Numbers come as integers or doubles; limits are inclusive."""
    found = getattr(read(**{field: value}), field)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("listing_id", None, "listing_id: expected a non-empty string, found nothing"),
        ("listing_id", "", "listing_id: expected a non-empty string, found str ''"),
        ("listing_id", 17, "listing_id: expected a non-empty string, found int 17"),
        ("listing_id", "x" * 513, "listing_id: at most 512 characters, found 513"),
        ("listing_id", "a\ud800", "listing_id: expected valid Unicode, found str 'a\\ud800'"),
        ("version", "17", "version: expected an integer or null, found str '17'"),
        ("version", True, "version: expected an integer or null, found bool True"),
        ("version", 1.5, "version: expected an integer or null, found float 1.5"),
        ("version", float("nan"), "version: expected an integer or null, found float nan"),
        ("version", float("inf"), "version: expected an integer or null, found float inf"),
        ("version", 2**63, "version: expected a 64-bit integer, found int 9223372036854775808"),
        ("version", 1e300, "version: expected a 64-bit integer, found float 1e+300"),
        ("title", b"Emma", "title: expected a string or null, found bytes b'Emma'"),
        ("title", "x" * 10_001, "title: at most 10000 characters, found 10001"),
        ("publisher", 5, "publisher: expected a string or null, found int 5"),
        ("publisher", "x" * 2_001, "publisher: at most 2000 characters, found 2001"),
        ("description", "x" * 200_001, "description: at most 200000 characters, found 200001"),
        ("authors", "Austen", "authors: expected a list of strings or null, found str 'Austen'"),
        ("authors", {"name": "Austen"}, "authors: expected a list of strings or null, found dict {'name': 'Austen'}"),
        ("authors", ["Austen", None], "authors: expected strings, found nothing"),
        ("authors", ["x" * 2_001], "authors: at most 2000 characters an entry, found 2001"),
        ("authors", ["x"] * 1_001, "authors: at most 1000 entries, found 1001"),
        ("price", "8.50", "price: expected a number or null, found str '8.50'"),
        ("price", False, "price: expected a number or null, found bool False"),
        ("price", float("nan"), "price: expected a finite number, found float nan"),
        ("price", float("-inf"), "price: expected a finite number, found float -inf"),
        (
            "price",
            10**400,
            f"price: expected a finite number, found int 1{'0' * 56}...",
        ),
        ("currency", "x" * 17, "currency: at most 16 characters, found 17"),
        ("language", "x" * 65, "language: at most 64 characters, found 65"),
        ("page_count", [300], "page_count: expected an integer or null, found list [300]"),
        ("year", "1815", "year: expected an integer or null, found str '1815'"),
        ("format", 1, "format: expected a string or null, found int 1"),
    ],
)
def test_what_a_field_may_not_be(field: str, value: Any, message: str) -> None:
    """A field of another type or size is refused; the message names it, what was expected and what was found."""
    with pytest.raises(InvalidListing) as caught:
        read(**{field: value})
    assert str(caught.value) == message


def test_what_is_found_is_not_quoted_at_length() -> None:
    """A message quotes at most sixty characters of what was found."""
    with pytest.raises(InvalidListing) as caught:
        read(price="9" * 100_000)
    assert len(str(caught.value)) < 120


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
mappings = st.dictionaries(st.sampled_from(sorted(WHOLE)), anything)


@given(values=mappings, listing_id=st.text(min_size=1, max_size=5))
def test_anything_is_a_listing_or_is_refused(values: dict[str, Any], listing_id: str) -> None:
    """Whatever the data hold, the answer is a listing whose fields have their types, or a reason."""
    try:
        listing = listing_from_mapping({**values, "listing_id": listing_id}, default_version=5)
    except InvalidListing:
        return
    assert isinstance(listing.version, int)
    assert isinstance(listing.authors, tuple)
    assert all(isinstance(getattr(listing, name), str | None) for name in ("title", "publisher", "currency", "format"))
    assert isinstance(listing.price, float | None)
