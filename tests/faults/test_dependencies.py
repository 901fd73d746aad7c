"""A dependency that is away stops progress and nothing else: work goes on by itself when it returns."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from consumer.schemas import LISTING
from tests.faults.conftest import rounds
from tests.faults.history import answered, prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.faults.watcher import Watcher
from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer
from tests.journey.publishing import framed, send_raw
from tests.journey.running import Surroundings, read_topic, wait_until

pytestmark = pytest.mark.integration

AWAY_S = 60.0 if os.environ.get("FAULT_ROUNDS") else 10.0
PATIENT = '{"session.timeout.ms": 6000, "reconnect.backoff.max.ms": 1000}'  # the default of the transaction's time-out


def goes_on(surroundings: Surroundings, service: Replica, since_s: float, what: str) -> None:
    """Returns when there are new answers; prints how long that took, and what memory the wait cost."""
    before = answered(surroundings)
    wait_until(lambda: answered(surroundings) > before + 20 or not service.is_running(), "the service goes on by itself")
    assert service.is_running(), "the service ended"
    print(f"\n{what}: goes on {time.monotonic() - since_s:.1f} s after its return; {service.memory_mb():.0f} MB resident")


def lag(service: Replica) -> float:
    """Records that wait in all partitions, as /metrics says."""
    _, text = service.get("/metrics")
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("enricher_lag_records{"))


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_redis_away_is_waited_for(
    surroundings: Surroundings, load: Load, watcher: Watcher, redis_server: RedisServer, how: str
) -> None:
    """Redis is stopped (refuses) or paused (is silent) for a while: nothing is answered meanwhile, nothing is lost."""
    with Replica(surroundings, KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        leave, come = _ways(redis_server, how)
        leave()
        time.sleep(0.7 * AWAY_S)  # longer than a call waits; by then what was answered before is committed
        stuck = answered(surroundings)
        time.sleep(0.3 * AWAY_S)
        assert answered(surroundings) == stuck, "the topic went on without the store"
        wait_until(lambda: lag(service) > 50, "the metric tells of the records that wait")
        come()
        goes_on(surroundings, service, time.monotonic(), f"redis {how} {AWAY_S:g} s")
        prove(surroundings, load, f"redis {how}")
        assert service.terminate() == 0


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_kafka_away_is_waited_for(
    surroundings: Surroundings, load: Load, watcher: Watcher, kafka_broker: KafkaServer, how: str
) -> None:
    """The only broker is stopped or paused for a while: the same process goes on when it returns."""
    with Replica(surroundings, KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        leave, come = _ways(kafka_broker, how)
        leave()
        time.sleep(AWAY_S)
        come()
        kafka_broker.wait_until_ready()
        goes_on(surroundings, service, time.monotonic(), f"kafka {how} {AWAY_S:g} s")
        prove(surroundings, load, f"kafka {how}")
        assert service.terminate() == 0


def test_at_least_once_kafka_away_is_waited_for(
    surroundings: Surroundings, load: Load, watcher: Watcher, kafka_broker: KafkaServer
) -> None:
    """The broker is silent for longer than the session, with records in flight: they may be doubled, and none is lost.

    The same producer goes on: a purge of what was in flight would break its sequence.
    """
    with Replica(surroundings, DELIVERY__GUARANTEE="at_least_once", KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        kafka_broker.pause()
        time.sleep(AWAY_S)
        kafka_broker.unpause()
        kafka_broker.wait_until_ready()
        goes_on(surroundings, service, time.monotonic(), f"at_least_once, kafka paused {AWAY_S:g} s")
        prove(surroundings, load, "at_least_once, kafka paused", allowed=frozenset({"doubled", "out of order"}))
        assert "rewound" in service.log(), "nothing was taken back: nothing is tested"
        assert service.terminate() == 0


def test_a_commit_without_an_answer_is_asked_about_before_its_records_are_read_again(
    surroundings: Surroundings, load: Load, watcher: Watcher, kafka_broker: KafkaServer
) -> None:
    """The broker falls silent between offsets and commit, for longer than the session: was it committed, or not?

    Only the broker knows. Once it answers the commit is asked for again, and nothing is lost or doubled either way.
    """
    with Replica(surroundings, failpoint="after_offsets:sleep=2:5", KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_logged('"failpoint"')
        kafka_broker.pause()
        time.sleep(16.0)  # the commit gives up after 10 s, the session after 6 s
        kafka_broker.unpause()
        kafka_broker.wait_until_ready()
        goes_on(surroundings, service, time.monotonic(), "a commit in doubt")
        prove(surroundings, load, "a commit in doubt")
        assert service.terminate() == 0


def test_a_registry_that_is_away_holds_up_only_schemas_that_are_not_known_yet(
    surroundings: Surroundings, load: Load, registry_server: RegistryServer
) -> None:
    """Records of cached schemas go on; one of an unknown schema waits, with what is behind it, and is answered afterwards."""
    properties = '{"timeout": 1.0, "max.retries": 0}'
    unknown = surroundings.registry.register("another-shop", LISTING.replace('"Listing"', '"AnotherListing"'))
    with Replica(surroundings, SCHEMA_REGISTRY__PROPERTIES=properties) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        registry_server.pause()
        time.sleep(1.0)
        goes_on(surroundings, service, time.monotonic(), "registry away, cached schemas")
        assert "waiting_for_dependency" not in service.log()
        send_raw(surroundings, b"bad-unknown-schema", framed(unknown, b"\xff"))
        load.sent += 1
        service.wait_logged("waiting_for_dependency")
        time.sleep(1.0)
        stuck = answered(surroundings)
        time.sleep(2.0)
        assert answered(surroundings) == stuck
        registry_server.unpause()
        goes_on(surroundings, service, time.monotonic(), "registry away, an unknown schema")
        load.stop()
        assert service.terminate() == 0
    with Replica(surroundings) as last:
        last.wait_assigned()
        prove(surroundings, load, "registry away")
        assert last.terminate() == 0


def test_a_transaction_left_hanging_by_a_kill_blocks_readers_no_longer_than_its_time_out(surroundings: Surroundings) -> None:
    """A process dies with answers in an open transaction: readers wait for `transaction.timeout.ms` and see none of them."""
    timeout_s, broker_looks_every_s, slack_s = 5.0, 1.0, 3.0
    with Load(surroundings, seed=1) as load:
        with Replica(surroundings, failpoint="before_commit:sleep=60:5") as victim:
            victim.wait_logged('"failpoint"')
            hung_from = {one.partition: one.offset for one in _hung(surroundings)}
            assert hung_from, "nothing hangs: nothing is tested"
            victim.kill()
            died_s = time.monotonic()
        with Replica(surroundings) as heir:
            _read_beyond(surroundings, hung_from)
            blocked_s = time.monotonic() - died_s
            prove(surroundings, load, "a hanging transaction")
            assert heir.terminate() == 0
    print(f"readers were blocked for {blocked_s:.1f} s; transaction.timeout.ms is {1000 * timeout_s:g}")
    assert blocked_s < timeout_s + broker_looks_every_s + slack_s


def test_sigterm_under_load_exits_within_the_grace_and_throws_nothing_away(surroundings: Surroundings, load: Load) -> None:
    """SIGTERM under load: exit 0 within the grace, no answer was begun in vain, and the next process doubles nothing."""
    grace_s, took_s = 30.0, []
    for _ in range(rounds(2)):
        with Replica(surroundings, DELIVERY__TRANSACTION_MS="1500") as service:
            service.wait_assigned()
            goes_on(surroundings, service, time.monotonic(), "start")
            begun_s = time.monotonic()
            assert service.terminate(deadline_s=grace_s) == 0
            took_s.append(time.monotonic() - begun_s)
    aborted = aborted_answers(surroundings)
    with Replica(surroundings) as last:
        prove(surroundings, load, f"SIGTERM, at most {max(took_s):.1f} s of {grace_s:g} s")
        assert last.terminate() == 0
    assert aborted == 0, f"{aborted} answers were begun and thrown away"


@pytest.mark.short_form
def test_a_last_commit_that_is_refused_loses_nothing(surroundings: Surroundings, load: Load) -> None:
    """SIGTERM, and the broker refuses the transaction with what was answered last, as it does while the group changes: leaving
    the group must not commit offsets whose answers were dropped. The next replica answers them."""
    whole = {"DELIVERY__TRANSACTION_MS": "30000", "KAFKA__PROPERTIES": PATIENT}  # one transaction, as long as it works
    with Replica(surroundings, failpoint="before_commit:abort:1", **whole) as leaver:
        leaver.wait_assigned()
        wait_until(lambda: aborted_answers(surroundings) > 20, "answers are in the open transaction")
        assert leaver.terminate() == 0
        assert "last_transaction_aborted" in leaver.log()
    with Replica(surroundings) as last:
        last.wait_assigned()
        prove(surroundings, load, "last commit refused")
        assert last.terminate() == 0


def aborted_answers(surroundings: Surroundings) -> int:
    """How many enriched records stand in the topic that no reader of committed ones sees: aborted, or not committed yet."""
    servers, topic = surroundings.bootstrap_servers, surroundings.topics.output
    return len(read_topic(servers, topic, isolation="read_uncommitted")) - len(read_topic(servers, topic))


def _ways(server: KafkaServer | RedisServer, how: str) -> tuple[Callable[[], None], Callable[[], None]]:
    return (server.stop, server.start) if how == "stopped" else (server.pause, server.unpause)


def _hung(surroundings: Surroundings) -> list[Any]:
    """What stands behind the last committed record, in partitions where something does."""
    servers, topic = surroundings.bootstrap_servers, surroundings.topics.output
    found: list[Any] = []

    def some() -> bool:
        visible = {(one.partition, one.offset) for one in read_topic(servers, topic)}
        everything = read_topic(servers, topic, isolation="read_uncommitted")
        found[:] = [one for one in everything if (one.partition, one.offset) not in visible]
        return bool(found)

    wait_until(some, "answers stand in an open transaction")
    return found


def _read_beyond(surroundings: Surroundings, positions: dict[int, int]) -> None:
    """Returns when a `read_committed` reader was given a record behind each position."""
    servers, topic = surroundings.bootstrap_servers, surroundings.topics.output
    reader = Consumer({"bootstrap.servers": servers, "group.id": "waits-behind", "isolation.level": "read_committed"})
    reader.assign([TopicPartition(topic, partition, offset) for partition, offset in positions.items()])
    missing = dict(positions)

    def all_seen() -> bool:
        for message in reader.consume(100, 0.1):
            partition, offset = message.partition(), message.offset()
            if message.error() is None and partition in missing and (offset or 0) > missing[partition]:
                del missing[partition]
        return not missing

    try:
        wait_until(all_seen, "readers go on behind the hanging transaction")
    finally:
        reader.close()
