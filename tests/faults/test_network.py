"""Slow wires and cut ones."""

import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from tests.faults.conftest import QUICK, rounds
from tests.faults.history import answered, prove
from tests.faults.load import Load, pause_between
from tests.faults.replicas import Replica
from tests.faults.test_dependencies import goes_on
from tests.faults.watcher import Watcher
from tests.faults.wire import Wire, can_isolate, isolated, port_of
from tests.journey.publishing import publish
from tests.journey.running import Surroundings, read_topic, wait_until

pytestmark = pytest.mark.integration

CUT_S = 30.0 if os.environ.get("FAULT_ROUNDS") else 9.0  # the session's time-out is 4 s


def test_a_slow_redis_slows_the_service_and_nothing_else(surroundings: Surroundings, load: Load, watcher: Watcher) -> None:
    """50 ms for each call: work goes on at its pace, alive, in bounded memory, and nothing is lost."""
    with Wire(port_of(surroundings.redis_url), delay_s=0.05) as wire:
        slow = replace(surroundings, redis_url=f"redis://127.0.0.1:{wire.port}")
        with Replica(slow) as service:
            service.wait_assigned()
            goes_on(surroundings, service, time.monotonic(), "a slow redis")
            pause_between(Random(0), 5.0, 5.0)
            assert service.get("/livez")[0] == 200
            prove(surroundings, load, "redis slowed by 50 ms a call")
            assert service.terminate() == 0


@pytest.mark.skipif(not can_isolate(), reason="needs the right to make a network namespace (unshare -n)")
def test_a_member_cut_off_from_kafka_changes_nothing_any_more(surroundings: Surroundings, load: Load, watcher: Watcher) -> None:
    """A zombie that does not know: alive, with Redis at hand, cut off from Kafka for longer than its session.

    Another takes its partitions over meanwhile. What it had open is refused when the wire is mended; it rejoins, or ends with 1.
    """
    kafka, store, registry = (
        port_of(one) for one in (surroundings.bootstrap_servers, surroundings.redis_url, surroundings.registry_url)
    )
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wires = {port: stack.enter_context(Wire(port, path=sockets / str(port))) for port in (kafka, store, registry)}

        def around(command: list[str]) -> list[str]:
            return isolated(sockets, list(wires), command)

        # Its transaction outlives the cut: what refuses it must be the generation, not the transaction's time-out.
        patient = QUICK.replace('"transaction.timeout.ms": 5000', f'"transaction.timeout.ms": {int(CUT_S + 20) * 1000}')
        zombie = stack.enter_context(Replica(surroundings, around=around, KAFKA__PROPERTIES=patient))
        zombie.wait_assigned()
        goes_on(surroundings, zombie, time.monotonic(), "start")
        wires[kafka].cut()
        with Replica(surroundings) as heir:
            heir.wait_assigned()
            pause_between(Random(0), CUT_S, CUT_S)
            wires[kafka].mend()
            pause_between(Random(0), 5.0, 5.0)
            assert heir.terminate() == 0
        if zombie.is_running():
            assert zombie.terminate() in (0, 1)
    with Replica(surroundings) as last:
        last.wait_assigned()
        prove(surroundings, load, f"cut off from kafka for {CUT_S:g} s")
        assert last.terminate() == 0


@pytest.mark.parametrize("how", [pytest.param("read-only", marks=pytest.mark.short_form), "full"])
def test_a_redis_that_refuses_writes_is_waited_for(surroundings: Surroundings, load: Load, watcher: Watcher, how: str) -> None:
    """A read-only replica (a failover under way), or without memory left: nothing is answered until it takes writes again."""
    store: redis.Redis[Any] = redis.Redis.from_url(surroundings.redis_url)
    refuse, take = {
        "read-only": (lambda: store.replicaof("127.0.0.1", "1"), lambda: store.replicaof("NO", "ONE")),
        "full": (lambda: store.config_set("maxmemory", "1"), lambda: store.config_set("maxmemory", "0")),
    }[how]
    with Replica(surroundings) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        refuse()
        try:
            time.sleep(4.0)
            stuck = answered(surroundings)
            time.sleep(3.0)
            assert answered(surroundings) == stuck, "the topic went on without the store"
            assert {"read-only": "read only replica", "full": "maxmemory"}[how] in service.log()
        finally:
            take()
        goes_on(surroundings, service, time.monotonic(), f"redis {how}")
        prove(surroundings, load, f"redis {how} for 7 s")
        assert service.terminate() == 0


def test_at_least_once_doubles_what_lies_between_two_commits_and_loses_nothing(surroundings: Surroundings, seed: int) -> None:
    """Killed again and again: every offset is answered; at most what was written since the last commit is written again."""
    kills, chance = rounds(4), Random(seed)
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    at_least_once = {"DELIVERY__GUARANTEE": "at_least_once", "DELIVERY__TRANSACTION_MS": "100"}
    for kill in range(kills):
        publish(surroundings, ({"listing_id": f"{kill}-{number}", "version": 1, "title": "Book"} for number in range(500)))
        before = len(read_topic(servers, topics.output))
        with Replica(surroundings, **at_least_once) as service:
            wait_until(lambda before=before: len(read_topic(servers, topics.output)) > before, "an answer")  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.1))
            service.kill()
    offsets = {(one.partition, one.offset) for one in read_topic(servers, topics.input)}
    with Replica(surroundings, **at_least_once) as last:
        last.wait_assigned()
        wait_until(lambda: {one.source for one in read_topic(servers, topics.output)} == offsets, "every offset is answered")
        assert last.terminate() == 0
    times = Counter(answer.source for answer in read_topic(servers, topics.output))
    doubled = sum(times.values()) - len(times)
    print(f"at_least_once, {kills} kills, seed {seed}: {len(offsets)} events, 0 lost, {doubled} doubled")
    assert doubled <= kills * 1_000, "more for each kill than a tenth of a second's work, several times over"
