"""The Avro schemas of the topics, as text, and what is known of a writer's. Each text is whole in itself: it can be registered.

They evolve backward-compatibly: a new field has a default, only a field with a default is removed.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

LISTING = files(__name__).joinpath("listing.avsc").read_text(encoding="utf-8")
LISTING_ENVELOPE = files(__name__).joinpath("listing_envelope.avsc").read_text(encoding="utf-8")
ENRICHED_LISTING = files(__name__).joinpath("enriched_listing.avsc").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class ParsedSchema:
    """A writer schema, ready for `fastavro.schemaless_reader(stream, parsed.schema, …)`."""

    schema_id: int
    schema: Any


@dataclass(frozen=True, slots=True)
class UnknownSchema:
    """A schema that records cannot be read with, and why: the registry does not have it, or it is not readable Avro."""

    schema_id: int
    reason: str
