"""When the circuit breaker opens, and when it does not."""

import pytest

from consumer.breaker import CircuitBreaker
from consumer.errors import CircuitOpen
from consumer.records import InputRecord, Rejected, Stage
from tests.examples import NOW_MS, an_input_record

Marks = str  # one character a record: "." is accepted, "x" rejected


def check(breaker: CircuitBreaker, marks: Marks, *, start: int = 0, same_time: bool = False) -> None:
    accepted: list[InputRecord] = []
    rejected: list[Rejected] = []
    for offset, mark in enumerate(marks, start):
        record = an_input_record(b"", offset=offset, timestamp_ms=NOW_MS + (0 if same_time else offset))
        if mark == ".":
            accepted.append(record)
        else:
            rejected.append(Rejected(record, Stage.DECODE, "no Avro"))
    breaker.check(accepted, rejected)


@pytest.mark.parametrize("batches", [["xxx"], ["xx", "x"], ["x.xx"], ["x", ".", "xx"], ["...", "xxx."], ["x.x.x....", "xxx"]])
def test_a_share_too_large_opens_it(batches: list[Marks]) -> None:
    """More rejects among the last records than their share allows open the circuit, within a batch or over several."""
    breaker = CircuitBreaker(0.5, window=4)
    for batch in batches[:-1]:
        check(breaker, batch)
    with pytest.raises(CircuitOpen):
        check(breaker, batches[-1])


@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize("batches", [["xx"], ["xx..xx..xx"], ["x.x.x.x.x."], ["xx", "..", "xx"], ["xx.", ".xx", "..."], [""]])
def test_rejects_within_their_share_keep_it_closed(batches: list[Marks], same_time: bool) -> None:
    """Rejects up to the share are borne, again and again."""
    breaker = CircuitBreaker(0.5, window=4)
    for batch in batches:
        check(breaker, batch, same_time=same_time)


def test_the_first_records_of_a_start_do_not_open_it() -> None:
    """While fewer than the window were seen rejects count against the whole window: five bad of the first five are borne."""
    breaker = CircuitBreaker(0.5, window=1_000)
    check(breaker, "x" * 500)
    with pytest.raises(CircuitOpen):
        check(breaker, "x", start=500)


def test_order_is_that_of_time_over_all_partitions() -> None:
    """Records of two partitions count as they were written, not as they were fetched."""
    breaker = CircuitBreaker(0.5, window=4)
    bad = [an_input_record(b"", partition=0, offset=n, timestamp_ms=NOW_MS + 2 * n) for n in range(8)]
    good = [an_input_record(b"", partition=1, offset=n, timestamp_ms=NOW_MS + 2 * n + 1) for n in range(8)]
    breaker.check(good, [Rejected(record, Stage.DECODE, "no Avro") for record in bad])


def test_the_message_says_where_and_why() -> None:
    """The error names the count, the setting, and the position and reason of the last reject."""
    expected = (
        "3 of the last 4 records were rejected (delivery.max_reject_share is 0.5), the last at catalogue.listings/0/9 "
        "in stage decode: no Avro"
    )
    with pytest.raises(CircuitOpen) as caught:
        check(CircuitBreaker(0.5, window=4), "xxx", start=7)
    assert (str(caught.value), caught.value.exit_code) == (expected, 4)


def test_a_share_of_one_turns_it_off() -> None:
    """Where all may be rejected, any number is borne."""
    breaker = CircuitBreaker(1, window=10)
    check(breaker, "x" * 1_000)
    breaker.committed()
    check(breaker, "x" * 1_000)


def test_rejects_that_come_again_count_once() -> None:
    """After a rewind the count is that of the last commit, whatever left the window meanwhile."""
    breaker = CircuitBreaker(0.5, window=6)
    check(breaker, "x")
    breaker.committed()
    for _ in range(5):
        check(breaker, "xx....", start=1)
        breaker.rewind()
    check(breaker, "xx", start=1)
    with pytest.raises(CircuitOpen):
        check(breaker, "x", start=3)


def test_what_it_remembers_stays_small() -> None:
    """After a commit no more is kept than a window of rejects."""
    breaker = CircuitBreaker(0.5, window=4)
    for start in range(0, 4_000, 4):
        check(breaker, "xx..", start=start)
        breaker.committed()
    assert len(breaker._bad) <= 4


def test_the_share_is_of_the_last_records() -> None:
    """The share that an operator is shown is that of the window, and falls as good records come."""
    breaker = CircuitBreaker(0.5, window=4)
    assert breaker.share == 0
    check(breaker, "xx..")
    assert breaker.share == 0.5
    check(breaker, "...", start=4)
    assert breaker.share == 0
