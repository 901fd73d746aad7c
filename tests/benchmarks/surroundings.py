"""Real servers of one's own for as long as a measurement takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.infrastructure.prepare import choose_without_changes
from tests.infrastructure.start import new_kafka, new_redis, new_registry, started
from tests.infrastructure.topics import create_topics
from tests.journey.running import Surroundings


@contextmanager
def own_surroundings(redis_prefix: str, *, partitions: int = 4) -> Iterator[Surroundings]:
    """A Kafka, a Redis and a registry that nobody else uses, with topics; removed at the end. Raises: UnavailableError."""
    choice = choose_without_changes()
    kafka, store, registry = servers = new_kafka(choice), new_redis(choice), new_registry(choice)
    try:
        for server in servers:
            started(server)
        topics = create_topics(kafka.bootstrap_servers, partitions=partitions)
        yield Surroundings(kafka.bootstrap_servers, registry.url, store.url, redis_prefix, topics)
    finally:
        for server in servers:
            server.remove()
