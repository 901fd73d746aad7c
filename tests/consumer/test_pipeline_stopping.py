"""How the pipeline stops: by a signal, when the grace period ends, and by its own circuit breaker."""

import time
from collections.abc import Callable

import pytest

from consumer import pipeline
from consumer.errors import CircuitOpen, DrainIncomplete, TransactionAborted
from tests.consumer.journey import Journey
from tests.examples import INPUT_TOPIC, a_change_event, a_numbered_book, an_input_record
from tests.fakes import away

MakeJourney = Callable[..., Journey]
P0 = (INPUT_TOPIC, 0)
ABORTED = TransactionAborted("the broker says so")


def books(one: Journey, count: int) -> None:
    """Publishes listings that differ."""
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(count)))


def assert_exactly_once(one: Journey) -> None:
    assert one.kafka.answered() == one.kafka.all_positions()
    assert one.kafka.is_done()


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_finishes_what_is_in_flight(journey: MakeJourney) -> None:
    """After SIGTERM nothing more is read, and what was read is answered and committed."""
    one = journey(batch={"max_records": 2}, delivery={"transaction_ms": 30_000})
    books(one, 50)
    one.run(lambda: len(one.source.polls) == 2)
    read = sum(map(len, one.source.polls))
    assert read in (4, 6)
    assert one.said() == [(0, n, "PREDICTED v1") for n in range(read)]
    assert one.kafka.offsets[P0] == read


def test_a_last_commit_that_is_refused_commits_nothing_when_the_group_is_left(journey: MakeJourney) -> None:
    """The answers were dropped, so their offsets must not be committed while the partitions are given up: the records, which
    nobody would read again, would stay unanswered for good."""
    one = journey(delivery={"transaction_ms": 30_000})
    books(one, 3)
    one.delivery.commit_failures.next(ABORTED)
    one.run(lambda: bool(one.delivery.sends))
    assert [len(outputs) for outputs in one.kafka.aborted] == [3]
    assert (one.kafka.outputs, one.kafka.offsets[P0]) == ([], 0)


def test_a_grace_period_that_ends_with_an_open_transaction_commits_nothing_of_it(journey: MakeJourney) -> None:
    """The broker is away until the end: what was answered is dropped with its offsets, also where the broker comes back just
    as the group is left."""
    one = journey(delivery={"transaction_ms": 30_000}, shutdown={"drain_seconds": 0.1})
    books(one, 3)
    one.delivery.commit_failures.next(*away("kafka", 1000))
    with pytest.raises(DrainIncomplete):
        one.run(lambda: bool(one.delivery.sends))
    assert (one.kafka.outputs, one.kafka.offsets[P0]) == ([], 0)


def test_a_grace_period_that_ends_commits_nothing_of_what_is_left(journey: MakeJourney) -> None:
    """When the backend does not come back within the grace period, the service says so, and its records are read again."""
    one = journey(shutdown={"drain_seconds": 0.1})
    books(one, 3)
    one.backend.released.clear()
    one.source.before_poll.extend([lambda: None] * 2)
    started_s = time.monotonic()
    with pytest.raises(DrainIncomplete, match=r"not done within shutdown\.drain_seconds; 1 batches are read again"):
        one.run(lambda: len(one.source.polls) > 2)
    assert time.monotonic() - started_s < 1
    assert (one.kafka.outputs, one.kafka.offsets[P0]) == ([], 0)


@pytest.mark.parametrize("where", ["write", "read"])
def test_a_store_that_stays_away_does_not_hold_up_the_end(journey: MakeJourney, where: str) -> None:
    """A stop ends the wait for the store when the grace period is over; nothing is committed."""
    one = journey(shutdown={"drain_seconds": 0.1})
    books(one, 3)
    getattr(one.store, f"{where}_failures").always = away("redis")[0]
    with pytest.raises(DrainIncomplete):
        one.run(lambda: (one.waits("redis") or 0) >= 2)
    assert (one.kafka.outputs, one.kafka.offsets[P0]) == ([], 0)


def test_the_grace_period_is_counted_from_the_stop(journey: MakeJourney, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that a stop spends waiting for the store counts as grace period: it does not begin anew with the draining."""
    one = journey(batch={"max_records": 1}, shutdown={"drain_seconds": 0.4})
    books(one, 2)
    now_s = [1_000.0]
    monkeypatch.setattr(pipeline, "time", FakeTime(now_s))

    def a_stop_finds_the_store_away() -> None:
        assert one.stop is not None
        one.stop.set()
        one.store.write_failures.next(*away("redis"))

    def passing(seconds: float) -> Callable[[], None]:
        return lambda: now_s.__setitem__(0, now_s[0] + seconds)

    one.backend.released.clear()
    one.source.before_poll.extend([lambda: None, lambda: None, one.backend.released.set])  # both are read before
    one.backend.before_infer.extend([lambda: None, one.backend.released.clear])  # the second one stays there
    one.store.before_write.extend([a_stop_finds_the_store_away, passing(0.39)])
    one.source.in_keep_alive.extend([lambda: None, passing(0.02), one.backend.released.set])
    with pytest.raises(DrainIncomplete):
        one.run(lambda: False)
    assert (len(one.delivery.sends), one.kafka.offsets[P0]) == (1, 0)


class FakeTime:
    """`time` of the pipeline, moved by the test."""

    def __init__(self, now_s: list[float]) -> None:
        self._now_s = now_s
        self.time_ns = time.time_ns

    def monotonic(self) -> float:
        return self._now_s[0]


# ── the circuit breaker ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_circuit_breaker_stops_before_the_topic_is_drained(journey: MakeJourney) -> None:
    """Too many rejects among the last records stop the service; what was answered before is committed, of the rest nothing."""
    one = journey(batch={"max_records": 1}, delivery={"reject_window": 4, "transaction_ms": 30_000})
    books(one, 2)
    one.kafka.publish(*(an_input_record(b"{}") for _ in range(9)))
    with pytest.raises(CircuitOpen, match=r"catalogue.listings/0/4 in stage decode: not Avro"):
        one.run()
    assert one.said() == [
        (0, 0, "PREDICTED v1"),
        (0, 1, "PREDICTED v1"),
        (0, 2, "dead letter: decode"),
        (0, 3, "dead letter: decode"),
    ]
    assert one.kafka.offsets[P0] == 4


def test_rejects_among_good_records_do_not_stop_the_service(journey: MakeJourney) -> None:
    """Half of the records rejected, for ever, is borne where half is the share: records of one millisecond count in order."""
    one = journey(delivery={"reject_window": 2})
    for number in range(10):
        one.kafka.publish(an_input_record(b"{}"), a_change_event(a_numbered_book(number)))
    one.run()
    assert_exactly_once(one)


def test_rejects_that_are_read_again_are_counted_once(journey: MakeJourney) -> None:
    """A transaction that is aborted again and again does not add its rejects up."""
    one = journey(batch={"max_records": 1}, delivery={"reject_window": 4, "transaction_ms": 1})
    one.kafka.publish(an_input_record(b"{}"), an_input_record(b"{}"))
    one.delivery.commit_failures.next(*[ABORTED] * 5)
    one.run()
    assert_exactly_once(one)
