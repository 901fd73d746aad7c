"""How the client behaves when its server falls silent, is replaced, is busy, or is not what the URL says; on real servers."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.crc import key_slot

from consumer.errors import DependencyUnavailable, SettingsError
from consumer.prediction_store import PredictionStore
from tests.consumer.test_prediction_store import ENCODER, NOW_MS, novel
from tests.faults.wire import Wire, port_of
from tests.infrastructure.choose import Choice
from tests.infrastructure.redis_nodes import RedisCluster, new_node
from tests.infrastructure.servers import RedisServer, free_port
from tests.infrastructure.start import started

pytestmark = pytest.mark.integration

TIMEOUT_S = 0.5
SLACK_S = 1.0  # two busy cores


def a_store(url: str, prefix: str) -> PredictionStore:
    return PredictionStore(url, key_prefix=prefix, ttl_seconds=None, socket_timeout_s=TIMEOUT_S)


@pytest.fixture
def other_server(infrastructure: Choice) -> Iterator[RedisServer]:
    """A second Redis, running."""
    server = new_node(infrastructure)
    started(server)
    yield server
    server.remove()


def took_s(call: Callable[[], object], match: str) -> float:
    """How long the call took until it said that Redis is away, for this reason."""
    begun_s = time.monotonic()
    with pytest.raises(DependencyUnavailable, match=match):
        call()
    return time.monotonic() - begun_s


def test_a_redis_that_lets_packets_vanish_is_noticed_within_two_time_outs(redis_url: str, redis_prefix: str) -> None:
    """No packet comes back, on the open connection and on a new one: each call ends in time, and works after the mending."""
    with Wire(port_of(redis_url)) as wire:
        store = a_store(f"redis://127.0.0.1:{wire.port}/0", redis_prefix)
        store.write([novel(version=1)], now_ms=NOW_MS)
        wire.cut()
        for _ in range(3):
            assert took_s(lambda: store.write([novel(version=2)], now_ms=NOW_MS), "[Tt]ime") < 2 * TIMEOUT_S + SLACK_S
            assert took_s(lambda: store.read(["bd-1"]), "[Tt]ime") < 2 * TIMEOUT_S + SLACK_S
        wire.mend()
        assert store.write([novel(version=3)], now_ms=NOW_MS) == [novel(version=3)]
        store.close()


def test_a_silent_node_of_a_cluster_is_waited_for_once_a_batch(redis_cluster: RedisCluster, redis_prefix: str) -> None:
    """Not once for each of its listings: a batch for a paused primary ends after a few time-outs."""
    store = a_store(redis_cluster.url, redis_prefix)
    batch = [novel(f"bd-{number}") for number in range(64)]
    store.write(batch, now_ms=NOW_MS)
    redis_cluster.nodes[1].pause()  # has no replica, so nobody takes over
    for _ in range(2):
        assert took_s(lambda: store.write(batch, now_ms=NOW_MS), "[Tt]ime|CLUSTERDOWN") < 6 * TIMEOUT_S + SLACK_S
    redis_cluster.revive()
    assert store.write(batch, now_ms=NOW_MS) == batch
    store.close()


def test_behind_the_same_name_the_new_primary_is_found(redis_url: str, redis_prefix: str, other_server: RedisServer) -> None:
    """A primary turns read-only and its name leads elsewhere: no open connection keeps the service with the old one."""
    old: redis.Redis = redis.Redis.from_url(redis_url)
    with Wire(port_of(redis_url)) as name:
        store = a_store(f"redis://127.0.0.1:{name.port}/0", redis_prefix)
        store.write([novel(version=1)], now_ms=NOW_MS)
        old.replicaof("127.0.0.1", str(free_port()))
        try:
            name.lead_to(port_of(other_server.address))
            assert took_s(lambda: store.write([novel(version=2)], now_ms=NOW_MS), "READONLY .* a failover") < SLACK_S
            assert store.write([novel(version=2)], now_ms=NOW_MS) == [novel(version=2)]
        finally:
            old.replicaof("NO", "ONE")
        store.close()
    with redis.Redis.from_url(other_server.url) as new:
        assert new.exists(f"{redis_prefix}{{bd-1}}")


def test_a_busy_redis_is_waited_for_and_says_how_to_end_it(other_server: RedisServer, redis_prefix: str) -> None:
    """A script of somebody else that does not end: BUSY, until SCRIPT KILL."""
    admin: redis.Redis = redis.Redis.from_url(other_server.url)
    admin.config_set("busy-reply-threshold", 50)
    store = a_store(other_server.url, redis_prefix)

    def endless() -> None:
        with redis.Redis.from_url(other_server.url) as somebody, pytest.raises(redis.ResponseError):
            somebody.eval("while true do end", 0)

    thread = threading.Thread(target=endless)
    thread.start()
    time.sleep(0.3)
    took_s(lambda: store.write([novel()], now_ms=NOW_MS), "BUSY .*SCRIPT KILL ends one")
    admin.script_kill()
    thread.join(5)
    assert store.write([novel()], now_ms=NOW_MS) == [novel()]
    store.close()


def test_a_cluster_under_the_url_of_one_server_is_a_wrong_setting_and_the_reverse(
    redis_cluster: RedisCluster, redis_url: str, redis_prefix: str
) -> None:
    """The check says which scheme is right; so it does not wait for what will not come."""
    one_node = a_store(redis_cluster.nodes[0].url, redis_prefix)
    with pytest.raises(SettingsError, match=r"redis\.url: (CROSSSLOT|MOVED).* must begin with redis\+cluster://"):
        one_node.check()
    no_cluster = a_store(redis_url.removesuffix("/0").replace("redis://", "redis+cluster://"), redis_prefix)
    with pytest.raises(SettingsError, match=r"redis\.url: .*cluster support disabled.* must begin with redis://"):
        no_cluster.check()
    for store in (one_node, no_cluster):
        store.close()


def test_one_node_that_answers_is_enough_to_find_the_cluster(redis_cluster: RedisCluster, redis_prefix: str) -> None:
    """Of the addresses in the URL one is gone: the others say which nodes there are."""
    gone = f"127.0.0.1:{free_port()}"
    store = a_store(f"redis+cluster://{gone},{redis_cluster.nodes[2].address}", redis_prefix)
    assert store.write([novel("a"), novel("b"), novel("c")], now_ms=NOW_MS) == [novel("a"), novel("b"), novel("c")]
    store.close()


def test_the_guard_holds_while_a_slot_moves(redis_cluster: RedisCluster, redis_prefix: str) -> None:
    """Before, on the way (ASK) and after (MOVED): what is older is refused, what is newer and what is new is written, there."""
    store = a_store(redis_cluster.url, redis_prefix)
    key = f"{redis_prefix}{{bd-1}}"
    store.write([novel(version=5)], now_ms=NOW_MS)
    slot = key_slot(key.encode())
    source, target = redis_cluster.begin_move(slot)
    assert store.write([novel(version=4)], now_ms=NOW_MS) == [novel(version=5)]
    redis_cluster.move_keys(slot, source, target)
    assert store.write([novel(version=4)], now_ms=NOW_MS) == [novel(version=5)]
    assert store.write([novel(version=6)], now_ms=NOW_MS) == [novel(version=6)]
    assert store.read(["bd-1"]) == [novel(version=6)]
    redis_cluster.end_move(slot, source, target)
    assert store.write([novel(version=5)], now_ms=NOW_MS) == [novel(version=6)]
    assert store.unchanged({"bd-1": "c0ffee"}, model_epoch=3, recall=ENCODER.recall) == {"bd-1": novel(version=0)}
    assert redis_cluster.ask(target, "EXISTS", key) == 1
    store.close()
