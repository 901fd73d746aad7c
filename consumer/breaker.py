"""The circuit breaker: a bad deployment must not drain a topic into the dead letters."""

from collections.abc import Sequence

from consumer.errors import CircuitOpen
from consumer.records import InputRecord, Rejected


class CircuitBreaker:
    """Counts rejected records in a row, over all partitions.

    Args:
        limit: how many are borne; 0 turns the breaker off.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._in_a_row_committed = 0

    def committed(self) -> None:
        """What was checked so far will not come again."""
        self._in_a_row_committed = self._in_a_row

    def rewind(self) -> None:
        """What was checked since the last commit is read, and counted, again."""
        self._in_a_row = self._in_a_row_committed

    def check(self, accepted: Sequence[InputRecord], rejected: Sequence[Rejected]) -> None:
        """Takes note of a batch before any of it is written.

        Raises:
            CircuitOpen: the batch holds the reject that is one too many.
        """
        if not rejected:
            self._in_a_row = self._in_a_row if not accepted else 0
            return
        bad = {id(one.record): one for one in rejected}
        for record in sorted((*accepted, *(one.record for one in rejected)), key=_in_the_order_of_time):
            self._in_a_row = self._in_a_row + 1 if id(record) in bad else 0
            if self._limit and self._in_a_row > self._limit:
                cause = bad[id(record)]
                raise CircuitOpen(
                    f"{self._in_a_row} records in a row were rejected (delivery.max_consecutive_rejects is {self._limit}), "
                    f"the last at {record.topic}/{record.partition}/{record.offset} in stage {cause.stage}: {cause.reason}"
                )


def _in_the_order_of_time(record: InputRecord) -> tuple[int, str, int, int]:
    return record.timestamp_ms, record.topic, record.partition, record.offset
