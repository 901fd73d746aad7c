"""When something is away, partitions go, or a stop comes: nothing is lost and nothing is said twice."""

import time
from collections.abc import Callable

import pytest

from consumer.errors import TransactionAborted
from tests.consumer.journey import Journey
from tests.examples import INPUT_TOPIC, a_change_event, a_deletion, a_numbered_book
from tests.fakes import away, source_of

MakeJourney = Callable[..., Journey]
P0, P1 = (INPUT_TOPIC, 0), (INPUT_TOPIC, 1)
ABORTED = TransactionAborted("the broker says so")


def books(one: Journey, count: int, *, partition: int = 0) -> None:
    """Publishes listings that differ."""
    one.kafka.publish(*(a_change_event(a_numbered_book(100 * partition + n)) for n in range(count)), partition=partition)


def assert_exactly_once(one: Journey) -> None:
    assert one.kafka.answered() == one.kafka.all_positions()
    assert one.kafka.is_done()


def when_answered(one: Journey, happens: Callable[[], None]) -> None:
    """At the first poll that finds answers in the open transaction."""

    def look() -> None:
        if one.delivery.sends:
            happens()
        else:
            one.source.before_poll.append(look)

    one.source.before_poll.append(look)


# ── a dependency is away ────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_lost_while_the_store_is_away(journey: MakeJourney) -> None:
    """Offsets are not committed when Redis refuses a write; the write is tried again, and the member stays in its group."""
    one = journey()
    books(one, 3)
    one.store.write_failures.next(*away("redis", 4))
    assert one.run().said() == [(0, n, "PREDICTED v1") for n in range(3)]
    assert (one.source.keep_alives >= 4, one.waits("redis")) == (True, 4)


def test_no_answer_is_sent_before_the_store_took_it(journey: MakeJourney) -> None:
    """While the store is away nothing of its batch is in a transaction."""
    one = journey()
    books(one, 3)
    sent: list[int] = []
    one.store.before_write.extend([lambda: sent.append(len(one.delivery.sends))] * 4)
    one.store.write_failures.next(*away("redis", 3))
    one.run()
    assert sent == [0, 0, 0, 0]


def test_the_open_transaction_is_committed_while_the_store_is_away(journey: MakeJourney) -> None:
    """A transaction that was open when the store went away is committed, so that it does not time out."""
    one = journey(batch={"max_records": 1, "max_in_flight": 1}, delivery={"transaction_ms": 30_000})
    books(one, 2)
    visible: list[int] = []
    failing = [lambda: visible.append(len(one.kafka.outputs))] * 3

    def store_goes_away() -> None:
        one.store.write_failures.next(*away("redis", 2))
        failing[0]()

    one.store.before_write.extend([lambda: None, store_goes_away, *failing[1:]])
    one.run(lambda: len(one.delivery.sends) == 2)
    assert visible == [0, 1, 1]
    assert_exactly_once(one)


def test_reading_from_the_store_is_waited_for(journey: MakeJourney) -> None:
    """A store that is away when reuse is looked up is waited for."""
    one = journey()
    books(one, 3)
    one.store.read_failures.next(*away("redis", 3))
    one.run()
    assert_exactly_once(one)
    assert one.waits("redis") == 3


def test_the_registry_is_waited_for(journey: MakeJourney) -> None:
    """A registry that is away is waited for: its records are not dead letters."""
    one = journey()
    books(one, 2)
    one.schemas.failures.next(*away("schema_registry", 3))
    assert one.run().said() == [(0, 0, "PREDICTED v1"), (0, 1, "PREDICTED v1")]
    assert one.waits("schema_registry") == 3


def test_a_broker_that_does_not_answer_a_poll_is_waited_for(journey: MakeJourney) -> None:
    """While polling fails the service stays up, shows signs of life and commits what was answered."""
    one = journey(batch={"max_records": 1}, delivery={"transaction_ms": 30_000})
    books(one, 2)
    visible: list[int] = []

    def broker_goes_away() -> None:
        if one.delivery.sends:
            one.source.poll_failures.next(*away("kafka", 3))
            one.source.before_poll.extend([lambda: visible.append(len(one.kafka.outputs))] * 3)
        else:
            one.source.before_poll.append(broker_goes_away)

    one.source.before_poll.append(broker_goes_away)
    one.run(lambda: len(visible) == 3)
    assert visible[-1] >= 1
    assert one.health.live().ok


def test_a_stop_ends_the_wait_for_a_poll(journey: MakeJourney) -> None:
    """SIGTERM is heeded while the broker does not answer, without waiting for the grace period to end."""
    one = journey(shutdown={"drain_seconds": 5})
    one.source.poll_failures.always = away("kafka")[0]
    started_s = time.monotonic()
    one.run(lambda: (one.waits("kafka") or 0) >= 3)
    assert time.monotonic() - started_s < 2


def test_a_wait_that_ended_in_an_abort_is_no_wait_any_more(journey: MakeJourney) -> None:
    """When partitions are lost while the store is away, the service does not say for ever that it waits for the store."""
    one = journey(partitions=2, batch={"max_records": 1}, delivery={"transaction_ms": 30_000})
    books(one, 1)
    books(one, 1, partition=1)
    one.store.before_write.extend([lambda: None, lambda: one.store.write_failures.next(*away("redis"))])
    one.delivery.commit_failures.next(ABORTED)
    one.run(lambda: len(one.delivery.sends) == 3)
    assert_exactly_once(one)
    assert one.metric("enricher_transactions_total", result="aborted") == 1
    assert one.health.ready().reasons == {}


# ── transactions that end badly ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", ["send", "commit"])
def test_an_aborted_transaction_is_done_again(journey: MakeJourney, call: str) -> None:
    """After an abort all records since the last commit are read again; readers of committed data see each answer once."""
    one = journey(batch={"max_records": 2}, delivery={"transaction_ms": 1})
    books(one, 9)
    getattr(one.delivery, f"{call}_failures").next(ABORTED, ABORTED)
    one.delivery.abort_failures.next(*away("kafka", 2))
    one.source.rewind_failures.next(*away("kafka", 2))
    one.run()
    assert_exactly_once(one)
    assert (one.source.rewinds, len(one.kafka.aborted)) == (2, 2)


def test_a_commit_without_an_answer_is_asked_again(journey: MakeJourney) -> None:
    """A commit that is not answered in time is repeated as it was, and nothing is sent meanwhile."""
    one = journey(batch={"max_records": 1}, delivery={"transaction_ms": 1})
    books(one, 5)
    one.delivery.commit_failures.next(*away("kafka", 4))
    one.run()
    assert_exactly_once(one)
    assert (one.kafka.aborted, one.waits("kafka")) == ([], 4)


@pytest.mark.parametrize("happened", [True, False])
def test_a_commit_in_doubt_goes_on_where_the_group_says(journey: MakeJourney, happened: bool) -> None:
    """Its records are read again if the group does not know of it, and only then."""
    one = journey(batch={"max_records": 2}, delivery={"transaction_ms": 1})
    books(one, 9)
    one.delivery.doubts.append(happened)
    one.run()
    assert_exactly_once(one)
    assert (one.source.recalls, one.source.rewinds) == (1, 1)


def test_an_abort_while_draining_leaves_the_rest_to_the_next(journey: MakeJourney) -> None:
    """A last commit that fails commits nothing; what was in it is read by whoever takes over."""
    one = journey(delivery={"transaction_ms": 30_000})
    books(one, 2)
    one.delivery.commit_failures.next(ABORTED)
    one.run(lambda: bool(one.delivery.sends))
    assert (one.kafka.outputs, one.kafka.offsets[P0]) == ([], 0)


# ── partitions come and go ──────────────────────────────────────────────────────────────────────────────────────


def test_records_of_a_partition_that_was_revoked_in_flight_are_dropped(journey: MakeJourney) -> None:
    """What is on its way when its partition is revoked is not sent; the rest of its batch is."""
    one = journey(partitions=2)
    books(one, 3)
    books(one, 2, partition=1)
    one.backend.released.clear()
    one.source.before_poll.extend([lambda: None, lambda: one.source.revoke(P1), one.backend.released.set])
    one.run(lambda: one.kafka.offsets[P0] == 3)
    assert one.said() == [(0, n, "PREDICTED v1") for n in range(3)]
    assert {source_of(output)[0] for sent in one.delivery.sends for output in sent} == {0}
    assert (one.kafka.offsets[P1], set(one.store.states)) == (0, {"book-0", "book-1", "book-2"})


def test_records_that_come_after_their_partition_was_revoked_are_dropped(journey: MakeJourney) -> None:
    """A poll that hands over records of a partition which it gave up meanwhile brings nothing of it."""
    one = journey(partitions=2)
    books(one, 2)
    books(one, 2, partition=1)
    one.source.after_fetch.append(lambda: one.source.revoke(P1))
    one.run(lambda: one.kafka.offsets[P0] == 2)
    assert one.said() == [(0, 0, "PREDICTED v1"), (0, 1, "PREDICTED v1")]
    assert one.kafka.offsets[P1] == 0


def test_a_partition_that_comes_back_is_read_from_its_committed_offset(journey: MakeJourney) -> None:
    """Work begun before a partition went and came back is dropped: its records are read again, and answered once."""
    one = journey(partitions=2)
    books(one, 3)
    books(one, 2, partition=1)
    one.backend.released.clear()

    def away_and_back() -> None:
        one.source.revoke(P1)
        one.source.assign(P1)

    one.source.before_poll.extend([lambda: None, away_and_back, one.backend.released.set])
    one.run()
    assert_exactly_once(one)


def test_what_is_answered_is_committed_before_a_partition_goes(journey: MakeJourney) -> None:
    """Answers in the open transaction are committed while their partition is being revoked."""
    one = journey(delivery={"transaction_ms": 30_000})
    books(one, 3)
    committed: list[int] = []

    def revoke() -> None:
        one.source.revoke(P0)
        committed.append(one.kafka.offsets[P0])

    when_answered(one, revoke)
    one.run(lambda: bool(committed))
    assert committed == [3]
    assert_exactly_once(one)


@pytest.mark.parametrize("error", [ABORTED, *away("kafka")])
def test_a_commit_that_fails_before_a_partition_goes_is_dropped_whole(journey: MakeJourney, error: Exception) -> None:
    """When the commit before a revocation fails, the transaction is aborted and what is still owned is read again."""
    one = journey(partitions=2, delivery={"transaction_ms": 30_000})
    books(one, 3)
    books(one, 2, partition=1)
    revoked: list[bool] = []

    def revoke() -> None:
        one.delivery.commit_failures.next(error)
        one.source.revoke(P1)
        revoked.append(True)

    when_answered(one, revoke)
    one.run(lambda: bool(revoked) and one.source.rewinds == 1 and len(one.delivery.sends) == 2)
    assert one.said() == [(0, n, "REUSED v1") for n in range(3)], "the store led the topic"
    assert (one.kafka.offsets[P0], one.kafka.offsets[P1]) == (3, 0)


def test_a_transaction_with_answers_of_a_lost_partition_is_aborted(journey: MakeJourney) -> None:
    """Lost partitions have another owner already: the open transaction is aborted, what is still owned is answered again."""
    one = journey(partitions=2, delivery={"transaction_ms": 30_000})
    books(one, 3)
    books(one, 2, partition=1)
    when_answered(one, lambda: one.source.lose(P1))
    one.run(lambda: one.source.rewinds == 1 and len(one.delivery.sends) == 2)
    assert one.said() == [(0, n, "REUSED v1") for n in range(3)], "the store led the topic"
    assert [len(outputs) for outputs in one.kafka.aborted] == [5]


def test_a_transaction_with_answers_of_a_lost_partition_is_not_committed_when_the_rest_goes(journey: MakeJourney) -> None:
    """One poll may bring both: what was lost has another owner, so nothing of the transaction is committed any more."""
    one = journey(partitions=2, delivery={"transaction_ms": 30_000})
    books(one, 3)
    books(one, 2, partition=1)
    gone: list[bool] = []

    def lose_and_revoke() -> None:
        one.source.lose(P1)
        one.source.revoke(P0)
        gone.append(True)

    when_answered(one, lose_and_revoke)
    one.run(lambda: bool(gone))
    assert (one.kafka.outputs, one.kafka.offsets) == ([], {P0: 0, P1: 0})


def test_a_revocation_during_a_commit_ends_that_commit(journey: MakeJourney) -> None:
    """When a partition is revoked while a commit waits for its answer, the offsets are not committed a second time."""
    one = journey(partitions=2)
    books(one, 2)
    books(one, 2, partition=1)
    one.delivery.commit_failures.next(*away("kafka"))

    def another_member_takes_over() -> None:
        one.source.revoke(P1)
        one.kafka.publish(a_deletion("z", version=1), partition=1)
        one.kafka.commit([], {P1: 3})

    one.source.in_keep_alive.append(another_member_takes_over)
    one.run()
    assert one.said() == [(p, n, "PREDICTED v1") for p in (0, 1) for n in range(2)]
    assert (one.kafka.offsets, one.kafka.aborted) == ({P0: 2, P1: 3}, [])


def test_a_partition_lost_while_the_store_is_away_is_not_answered(journey: MakeJourney) -> None:
    """Waiting for the store may cost partitions: their records are not sent when it is back."""
    one = journey(partitions=2)
    books(one, 2)
    books(one, 2, partition=1)
    one.store.write_failures.next(*away("redis"))
    one.source.in_keep_alive.append(lambda: one.source.lose(P1))
    one.run(lambda: one.kafka.offsets[P0] == 2)
    assert one.said() == [(0, 0, "PREDICTED v1"), (0, 1, "PREDICTED v1")]
