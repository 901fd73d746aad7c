"""What every journey needs: real servers, fresh topics, real listings."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.benchmarks.listings import real_listings
from tests.infrastructure.topics import Topics
from tests.journey.running import Surroundings


@pytest.fixture
def surroundings(
    bootstrap_servers: str, registry_url: str, redis_url: str, redis_prefix: str, topics: Any
) -> Iterator[Surroundings]:
    """A real Kafka, registry and Redis, with four partitions of its own."""
    created: Topics = topics(partitions=4)
    opened = Surroundings(bootstrap_servers, registry_url, redis_url, redis_prefix, created)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def two_thousand_listings() -> list[dict[str, Any]]:
    """Real ones: 500 of each data set where those are at hand, else what ships with the project, in several editions."""
    return real_listings(2000)
