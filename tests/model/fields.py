"""A listing as the Avro schema has it, from the fields of a data set's row."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from model.listing import listing_from_mapping


def listing_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of `consumer/schemas/listing.avsc`, authors as a list."""
    listing = listing_from_mapping(row, default_version=1)
    return {**asdict(listing), "authors": list(listing.authors)}
