"""The hash of marks, in a real Redis and a real Redis Cluster."""

from collections.abc import Iterator

import pytest

from consumer.crash_marks import CrashMarks
from consumer.errors import DependencyUnavailable
from tests.infrastructure.servers import free_port
from tests.journey.running import reader_of

P0, P1 = ("catalogue.listings", 0), ("catalogue.listings", 1)


@pytest.fixture(params=["redis_server", "redis_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).url)


@pytest.fixture
def marks(url: str, redis_prefix: str) -> Iterator[CrashMarks]:
    opened = CrashMarks(url, key_prefix=redis_prefix, group_id="enricher")
    yield opened
    opened.close()


@pytest.mark.integration
def test_a_mark_is_read_as_written_until_removed(marks: CrashMarks, url: str, redis_prefix: str) -> None:
    """Each partition has its own field in the group's hash; without marks there is no key."""
    marks.write(P0, "17 0 process")
    marks.write(P1, "- 0 process")
    assert (marks.read(P0), marks.read(P1)) == ("17 0 process", "- 0 process")
    with reader_of(url) as client:
        assert client.hlen(f"{redis_prefix}crashes:enricher") == 2
        marks.write(P0, None)
        marks.write(P1, None)
        assert marks.read(P0) is None
        assert not client.exists(f"{redis_prefix}crashes:enricher")


def test_a_store_that_is_not_there_is_a_dependency_away() -> None:
    """So that the pipeline waits for it."""
    nowhere = CrashMarks(f"redis://127.0.0.1:{free_port()}/0", key_prefix="", group_id="enricher")
    with pytest.raises(DependencyUnavailable):
        nowhere.read(P0)
    with pytest.raises(DependencyUnavailable):
        nowhere.write(P0, "0 0 process")
