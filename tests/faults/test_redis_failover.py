"""A Redis Cluster whose primaries die and whose slots move, and a single Redis with a replica: under load, on real servers."""

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from tests.faults.conftest import rounds
from tests.faults.history import answered, prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.faults.test_dependencies import goes_on
from tests.faults.watcher import Watcher
from tests.faults.wire import Wire, port_of
from tests.infrastructure.choose import Choice
from tests.infrastructure.redis_nodes import RedisCluster, new_node
from tests.infrastructure.servers import RedisServer
from tests.infrastructure.start import started
from tests.journey.running import Surroundings, wait_until
from tests.journey.test_rebuild import rebuild

pytestmark = [
    pytest.mark.integration,
    # A reader of the test's own (redis-py) leaves a socket to a node that died to the garbage collector; which one is not found.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def on_cluster(surroundings: Surroundings, redis_cluster: RedisCluster) -> Iterator[Surroundings]:
    """The surroundings of `load` and `watcher`, their store being the cluster; ask for it before those."""
    surroundings.redis_url = redis_cluster.url
    yield surroundings
    gc.collect()  # here, where the warning is expected, and not in somebody else's test


@pytest.mark.short_form
def test_a_primary_that_dies_is_replaced_by_its_replica(
    on_cluster: Surroundings, redis_cluster: RedisCluster, load: Load, watcher: Watcher
) -> None:
    """SIGKILL for the primary of a third of the slots: its replica takes over, work goes on, and it comes back as a replica."""
    first, replica = redis_cluster.nodes[0], redis_cluster.nodes[-1]
    with Replica(on_cluster) as service:
        service.wait_assigned()
        goes_on(on_cluster, service, time.monotonic(), "start")
        for _ in range(rounds(1)):
            victim = redis_cluster.owner(0)
            assert victim in (first, replica)
            victim.kill()
            killed_s = time.monotonic()
            wait_until(lambda victim=victim: redis_cluster.owner(0) is not victim, "the replica takes over")  # type: ignore[misc]
            took_s = time.monotonic() - killed_s
            goes_on(on_cluster, service, killed_s + took_s, f"a primary killed, its replica there {took_s:.1f} s later")
            victim.start()
            redis_cluster.wait_until_whole()
            redis_cluster.wait_until_followed()  # by the one that was killed, which is next to take over
        assert "waiting_for_dependency" in service.log()
        prove(on_cluster, load, "a primary of the cluster killed")
        assert service.terminate() == 0


@pytest.mark.short_form
def test_slots_that_move_under_load_lose_nothing(
    on_cluster: Surroundings, redis_cluster: RedisCluster, load: Load, watcher: Watcher
) -> None:
    """Each listing's slot moves to another primary while it is written: redirections (ASK, MOVED) are followed."""
    with Replica(on_cluster) as service:
        service.wait_assigned()
        goes_on(on_cluster, service, time.monotonic(), "start")
        before = redis_cluster.sent_on("evalsha")
        slots = sorted({key_slot(f"{on_cluster.redis_prefix}{{{one}}}".encode()) for one in load.listing_ids()})
        for _ in range(rounds(1)):
            for slot in slots:
                source, target = redis_cluster.begin_move(slot)
                redis_cluster.move_keys(slot, source, target)
                time.sleep(0.05)  # what is written now is asked for there
                redis_cluster.end_move(slot, source, target)
        followed = redis_cluster.sent_on("evalsha") - before
        goes_on(on_cluster, service, time.monotonic(), f"{len(slots)} slots moved, {followed} writes sent on")
        assert followed > 0, "no write met a slot on its way: nothing is tested"
        prove(on_cluster, load, f"{len(slots)} slots of the cluster moved")
        assert service.terminate() == 0


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_a_primary_without_a_replica_is_waited_for(
    on_cluster: Surroundings, redis_cluster: RedisCluster, load: Load, watcher: Watcher, how: str
) -> None:
    """A third of the slots is not served for ten seconds: nothing is answered meanwhile, and nothing lost."""
    node = redis_cluster.nodes[1]
    with Replica(on_cluster) as service:
        service.wait_assigned()
        goes_on(on_cluster, service, time.monotonic(), "start")
        (node.stop if how == "stopped" else node.pause)()
        time.sleep(7.0)
        stuck = answered(on_cluster)
        time.sleep(3.0)
        assert answered(on_cluster) == stuck, "the topic went on without the store"
        node.revive()
        redis_cluster.wait_until_whole()
        goes_on(on_cluster, service, time.monotonic(), f"a primary {how} 10 s")
        prove(on_cluster, load, f"a primary of the cluster {how}")
        assert service.terminate() == 0


def test_a_cluster_that_lost_its_data_is_filled_again(on_cluster: Surroundings, redis_cluster: RedisCluster, seed: int) -> None:
    """All nodes are emptied; `rebuild` brings back what the enriched topic holds."""
    with Load(on_cluster, seed=seed) as load, Replica(on_cluster) as service:
        service.wait_assigned()
        goes_on(on_cluster, service, time.monotonic(), "start")
        prove(on_cluster, load, "before the loss")
        assert service.terminate() == 0
    before = versions(on_cluster, load)
    assert any(before.values())
    for node in redis_cluster.primaries():
        redis_cluster.ask(node, "FLUSHALL")
    assert not any(versions(on_cluster, load).values()), "nothing was lost: nothing is tested"
    print(rebuild(on_cluster))
    assert versions(on_cluster, load) == before


def versions(surroundings: Surroundings, load: Load) -> dict[str, Any]:
    """Kind and version of each listing that is stored."""
    held = surroundings.stored(load.listing_ids())
    return {name: state and (type(state).__name__, state.version) for name, state in held.items()}


# ── one server and its replica ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair(infrastructure: Choice) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary, and a replica that has its data."""
    primary, replica = new_node(infrastructure), new_node(infrastructure)
    started(primary)
    started(replica)
    with redis.Redis.from_url(replica.url) as client:
        client.replicaof("127.0.0.1", str(port_of(primary.address)))
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica has its primary's data")
    yield primary, replica
    primary.remove()
    replica.remove()
    gc.collect()


@pytest.mark.short_form
def test_a_replica_that_is_promoted_is_found_behind_the_same_name(
    surroundings: Surroundings, pair: tuple[RedisServer, RedisServer], seed: int
) -> None:
    """The primary is killed, its replica promoted, and the name (a Service, a proxy) leads there: work goes on by itself."""
    primary, replica = pair
    with Wire(port_of(primary.address)) as name:
        through = replace(surroundings, redis_url=f"redis://127.0.0.1:{name.port}/0")
        with Load(through, seed=seed) as load, Watcher(through, load) as watcher, Replica(through) as service:
            service.wait_assigned()
            goes_on(through, service, time.monotonic(), "start")
            primary.kill()
            time.sleep(2.0)
            name.lead_to(port_of(replica.address))  # still read-only: its writes are refused, its connections not kept
            time.sleep(2.0)
            with redis.Redis.from_url(replica.url) as client:
                client.replicaof("NO", "ONE")
            goes_on(through, service, time.monotonic(), "a replica promoted")
            assert "READONLY" in service.log()
            prove(through, load, "redis failed over")
            assert service.terminate() == 0
        assert watcher.violations == []
