"""A book listing as every part of the project sees it, and how one is read from loosely typed data.

The same function reads a JSON line, an Avro record and a training row, so a listing means the same everywhere.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

# Longest texts accepted. A real title or blurb is far below them; a record above them is a fault of its producer.
MAX_ID_CHARACTERS = 512
MAX_TITLE_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 2_000
MAX_AUTHORS = 1_000
MAX_DESCRIPTION_CHARACTERS = 200_000


_NUMBERS = (int, float, Decimal)  # `int | float` in a function is made anew with each call


class InvalidListing(ValueError):
    """The data are not a listing; the message names the field, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a shop says of one book.

    Attributes:
        listing_id: the shop's id, the key of every topic and of the store.
        version: grows with each change of this listing; by default milliseconds since the epoch.
        cover: the encoded image (JPEG, PNG or WebP), None when there is none.
        cover_url: where the image can be fetched, by a service that is set to do so; `cover` goes before it.
        price: in units of `currency` (ISO 4217).
        language: ISO 639 code.
    """

    listing_id: str
    version: int = 0
    title: str | None = None
    authors: tuple[str, ...] = ()
    publisher: str | None = None
    description: str | None = None
    price: float | None = None
    currency: str | None = None
    page_count: int | None = None
    language: str | None = None
    year: int | None = None
    format: str | None = None
    cover: bytes | None = field(default=None, repr=False)
    cover_url: str | None = field(default=None, repr=False)  # it may carry a signature


KNOWN_FIELDS = frozenset(Listing.__dataclass_fields__) | {"deleted"}


def listing_from_mapping(values: Mapping[str, Any], *, default_version: int, cover: bytes | None = None) -> Listing:
    """Reads a listing from decoded JSON or Avro; unknown fields are ignored, absent ones are None.

    Args:
        values: field name to value. `cover` is taken from `values` when it is bytes, `cover_url` when it is text.
        default_version: the version of a listing that states none.
        cover: the encoded image, where it does not travel in `values`.

    Raises:
        InvalidListing: a field has the wrong type, is too long, or the id is missing.
    """
    get = values.get
    listing_id = get("listing_id")
    if not isinstance(listing_id, str) or not listing_id:
        raise InvalidListing(f"listing_id: expected a non-empty string, found {_shown(listing_id)}")
    if len(listing_id) > MAX_ID_CHARACTERS:
        raise InvalidListing(f"listing_id: at most {MAX_ID_CHARACTERS} characters, found {len(listing_id)}")
    try:
        listing_id.encode()
    except UnicodeEncodeError:  # JSON may carry half of a surrogate pair; a key in Kafka and Redis is UTF-8
        raise InvalidListing(f"listing_id: expected valid Unicode, found {_shown(listing_id)}") from None
    own_cover, cover_url = get("cover"), get("cover_url")
    version = _integer("version", get("version"))
    return Listing(
        listing_id=listing_id,
        version=default_version if version is None else version,
        title=_text("title", get("title"), MAX_TITLE_CHARACTERS),
        authors=_names("authors", get("authors")),
        publisher=_text("publisher", get("publisher"), MAX_NAME_CHARACTERS),
        description=_text("description", get("description"), MAX_DESCRIPTION_CHARACTERS),
        price=_number("price", get("price")),
        currency=_text("currency", get("currency"), 16),
        page_count=_integer("page_count", get("page_count")),
        language=_text("language", get("language"), 64),
        year=_integer("year", get("year")),
        format=_text("format", get("format"), MAX_NAME_CHARACTERS),
        cover=own_cover if isinstance(own_cover, bytes) else cover,
        cover_url=cover_url if isinstance(cover_url, str) else None,
    )


def unknown_fields(values: Iterable[str]) -> set[str]:
    """The names that a listing does not have."""
    return set(values) - KNOWN_FIELDS


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _text(name: str, value: object, limit: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidListing(f"{name}: expected a string or null, found {_shown(value)}")
    if len(value) > limit:
        raise InvalidListing(f"{name}: at most {limit} characters, found {len(value)}")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise InvalidListing(f"{name}: expected a list of strings or null, found {_shown(value)}")
    if len(value) > MAX_AUTHORS:
        raise InvalidListing(f"{name}: at most {MAX_AUTHORS} entries, found {len(value)}")
    for entry in value:
        if not isinstance(entry, str):
            raise InvalidListing(f"{name}: expected strings, found {_shown(entry)}")
        if len(entry) > MAX_NAME_CHARACTERS:
            raise InvalidListing(f"{name}: at most {MAX_NAME_CHARACTERS} characters an entry, found {len(entry)}")
    return tuple(value)


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise InvalidListing(f"{name}: expected a number or null, found {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidListing(f"{name}: expected a finite number, found {_shown(value)}")
    return number


def _integer(name: str, value: object) -> int | None:
    if value is None:
        return None
    number: object = value
    # JSON writers that know only doubles; Debezium, for which every NUMERIC column is a Decimal
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidListing(f"{name}: expected an integer or null, found {_shown(value)}")
    if not -(2**63) <= number < 2**63:
        raise InvalidListing(f"{name}: expected a 64-bit integer, found {_shown(value)}")
    return number
