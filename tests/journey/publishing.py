"""What a shop does, and what it does wrong: events on the input topic, with their positions."""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from consumer.publish import Publisher
from tests.journey.running import Surroundings


def publish(surroundings: Surroundings, listings: Iterable[Mapping[str, Any]]) -> None:
    """Sends listings as they are; all are on the broker when it returns."""
    publisher = Publisher(surroundings.settings(), surroundings.registry)
    for listing in listings:
        publisher.publish(listing)
    publisher.flush()


def delete(surroundings: Surroundings, listing_id: str, *, version: int | None) -> None:
    """Sends one deletion."""
    publisher = Publisher(surroundings.settings(), surroundings.registry)
    publisher.delete(listing_id, version)
    publisher.flush()


def send_raw(
    surroundings: Surroundings,
    key: bytes | None,
    value: bytes | None,
    *,
    headers: list[tuple[str, str | bytes | None]] | None = None,
) -> tuple[int, int]:
    """Any bytes; returns the partition and offset at which they stand."""
    placed: list[tuple[int, int]] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        placed.append((partition, offset))

    producer = Producer({"bootstrap.servers": surroundings.bootstrap_servers, "message.max.bytes": 20_000_000})
    producer.produce(surroundings.topics.input, key=key, value=value, headers=headers or [], on_delivery=delivered)
    assert producer.flush(30) == 0
    return placed[0]


def framed(schema_id: int, payload: bytes) -> bytes:
    """Confluent framing around any bytes."""
    return struct.pack(">bI", 0, schema_id) + payload
