"""Listings to change events: what a shop's own producer does, for trials and tests."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, Message, Producer

from consumer.codec import VERSION_HEADER, encode
from consumer.errors import DependencyUnavailable, SettingsError
from consumer.kafka import CLIENT_LOG, client_settings
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.schemas import LISTING
from consumer.settings import Settings
from model.listing import InvalidListing, listing_from_mapping

FLUSH_S_MAX = 30.0


class Publisher:
    """Writes change events to the input topic. `flush` says whether all arrived."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self._topic = settings.kafka.input_topic
        schema_id = registry.register(f"{self._topic}-value", LISTING)
        schema = registry.schemas([schema_id])[schema_id]
        if not isinstance(schema, ParsedSchema):
            raise SettingsError(f"schema_registry: expected to read back schema {schema_id}, found: {schema.reason}")
        self._schema = schema
        self._failed: list[str] = []
        self._producer = Producer(
            {
                "enable.idempotence": True,
                "linger.ms": 5,
                "partitioner": "murmur2_random",  # as Java's clients place keys, so that both may write one topic
                "compression.type": "lz4",
                **client_settings(settings.kafka),
                "delivery.report.only.error": True,
                "logger": CLIENT_LOG,
            }
        )

    def publish(self, values: Mapping[str, Any], cover: bytes | None = None) -> None:
        """Sends one listing in its present form. Raises: InvalidListing."""
        listing = listing_from_mapping(values, default_version=_now_ms(), cover=cover)
        try:
            value = encode({**asdict(listing), "authors": list(listing.authors)}, self._schema)
        except UnicodeEncodeError as error:  # JSON may carry half of a surrogate pair
            raise InvalidListing(f"{listing.listing_id}: expected valid Unicode, found {error.object[:40]!r}") from error
        self._send(listing.listing_id, value, [])

    def delete(self, listing_id: str, version: int | None = None) -> None:
        """Sends a deletion; without a version it counts as of now (ms)."""
        headers: list[tuple[str, str | bytes | None]] = [] if version is None else [(VERSION_HEADER, str(version).encode())]
        self._send(listing_id, None, headers)

    def flush(self) -> None:
        """Returns when every event is on the broker. Raises: DependencyUnavailable."""
        left = self._producer.flush(FLUSH_S_MAX)
        if self._failed or left:
            reason = self._failed[0] if self._failed else f"{left} events are not acknowledged after {FLUSH_S_MAX:g} s"
            raise DependencyUnavailable("kafka", reason)

    def _send(self, listing_id: str, value: bytes | None, headers: list[tuple[str, str | bytes | None]]) -> None:
        deadline_s = time.monotonic() + FLUSH_S_MAX
        while True:
            try:
                self._producer.produce(
                    self._topic, key=listing_id.encode(), value=value, headers=headers, on_delivery=self._delivered
                )
                self._producer.poll(0)
                return
            except BufferError:
                if time.monotonic() > deadline_s:
                    raise DependencyUnavailable("kafka", "the producer's queue stayed full") from None
                self._producer.poll(0.1)
            except KafkaException as error:
                raise DependencyUnavailable("kafka", f"{listing_id}: {error.args[0]}") from error

    def _delivered(self, error: ClientError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(str(error))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
