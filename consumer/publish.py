"""Listings to change events: what a shop's own producer does, for trials and tests."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from consumer.codec import VERSION_HEADER, encode
from consumer.errors import SettingsError
from consumer.plain_producer import PlainProducer
from consumer.records import Headers, OutputRecord
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.schemas import LISTING
from consumer.settings import Settings
from model.listing import InvalidListing, listing_from_mapping


class Publisher:
    """Writes change events to the input topic. `flush` says whether all arrived."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self._topic = settings.kafka.input_topic
        schema_id = registry.register(f"{self._topic}-value", LISTING)
        schema = registry.schemas([schema_id])[schema_id]
        if not isinstance(schema, ParsedSchema):
            raise SettingsError(f"schema_registry: expected to read back schema {schema_id}, found: {schema.reason}")
        self._schema = schema
        self._producer = PlainProducer(settings.kafka)

    def publish(self, values: Mapping[str, Any], cover: bytes | None = None) -> None:
        """Sends one listing in its present form. Raises: InvalidListing."""
        listing = listing_from_mapping(values, default_version=_now_ms(), cover=cover)
        try:
            value = encode({**asdict(listing), "authors": list(listing.authors)}, self._schema)
        except UnicodeEncodeError as error:  # JSON may carry half of a surrogate pair
            raise InvalidListing(f"{listing.listing_id}: expected valid Unicode, found {error.object[:40]!r}") from error
        self._send(listing.listing_id, value, ())

    def delete(self, listing_id: str, version: int | None = None) -> None:
        """Sends a deletion; without a version it counts as of now (ms)."""
        self._send(listing_id, None, () if version is None else ((VERSION_HEADER, str(version).encode()),))

    def flush(self) -> None:
        """Returns when every event is on the broker. Raises: DependencyUnavailable."""
        self._producer.flush()

    def _send(self, listing_id: str, value: bytes | None, headers: Headers) -> None:
        self._producer.send(OutputRecord(self._topic, listing_id.encode(), value, headers))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
