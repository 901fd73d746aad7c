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


@pytest.mark.parametrize("batches", [["xxx"], ["xx", "x"], ["x.xxx"], [".", "xxx."], ["xx", "", "x"]])
def test_one_too_many_in_a_row_opens_it(batches: list[Marks]) -> None:
    """More rejects in a row than the limit open the circuit, within a batch or over several."""
    breaker = CircuitBreaker(2)
    for batch in batches[:-1]:
        check(breaker, batch)
    with pytest.raises(CircuitOpen):
        check(breaker, batches[-1])


@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize("batches", [["xx"], ["xx.xx.xx"], ["xx", ".", "xx"], ["xx.", "xx", "...", "xx."], [""]])
def test_good_records_between_them_keep_it_closed(batches: list[Marks], same_time: bool) -> None:
    """Rejects up to the limit are borne, again and again, where good records stand between them."""
    breaker = CircuitBreaker(2)
    for batch in batches:
        check(breaker, batch, same_time=same_time)


def test_the_message_says_where_and_why() -> None:
    """The error names the count, the setting, and the position and reason of the last reject."""
    expected = (
        "3 records in a row were rejected (delivery.max_consecutive_rejects is 2), the last at catalogue.listings/0/9 "
        "in stage decode: no Avro"
    )
    with pytest.raises(CircuitOpen) as caught:
        check(CircuitBreaker(2), "xxx", start=7)
    assert (str(caught.value), caught.value.exit_code) == (expected, 4)


def test_zero_turns_it_off() -> None:
    """A limit of 0 bears any number of rejects."""
    check(CircuitBreaker(0), "x" * 1_000)


def test_rejects_that_come_again_count_once() -> None:
    """After a rewind the count is that of the last commit."""
    breaker = CircuitBreaker(3)
    check(breaker, "x")
    breaker.committed()
    for _ in range(5):
        check(breaker, "xx", start=1)
        breaker.rewind()
    check(breaker, "xx", start=1)
    with pytest.raises(CircuitOpen):
        check(breaker, "x", start=3)
