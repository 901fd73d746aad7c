"""The circuit breaker: a bad deployment must not drain a topic into the dead letters."""

from bisect import bisect_right
from collections.abc import Sequence

from consumer.errors import CircuitOpen
from consumer.records import InputRecord, Rejected


class CircuitBreaker:
    """Counts the rejects among the last records, over all partitions.

    Args:
        max_share: of `window` records, how many may be rejected; 1 turns the breaker off.
        window: records looked back on. While fewer were seen the share is of `window` all the same: the first records of a
            start are too few to judge by.
    """

    def __init__(self, max_share: float, *, window: int) -> None:
        self._max_share = max_share
        self._window = window
        self._seen = 0
        self._seen_committed = 0
        self._bad: list[int] = []  # of the records seen, counted from 1, those rejected; older ones go with a commit

    @property
    def share(self) -> float:
        """Share of the last `window` records that were rejected."""
        return (len(self._bad) - bisect_right(self._bad, self._seen - self._window)) / self._window

    def committed(self) -> None:
        """What was checked so far will not come again."""
        self._seen_committed = self._seen
        del self._bad[: bisect_right(self._bad, self._seen - self._window)]

    def rewind(self) -> None:
        """What was checked since the last commit is read, and counted, again."""
        self._seen = self._seen_committed
        del self._bad[bisect_right(self._bad, self._seen) :]

    def check(self, accepted: Sequence[InputRecord], rejected: Sequence[Rejected]) -> None:
        """Takes note of a batch before any of it is written.

        Raises:
            CircuitOpen: the batch holds the reject that is one too many.
        """
        if not rejected:
            self._seen += len(accepted)
            return
        bad = {id(one.record): one for one in rejected}
        for record in sorted((*accepted, *(one.record for one in rejected)), key=_in_the_order_of_time):
            self._seen += 1
            if (cause := bad.get(id(record))) is None:
                continue
            self._bad.append(self._seen)
            count = len(self._bad) - bisect_right(self._bad, self._seen - self._window)
            if count > self._max_share * self._window:
                raise CircuitOpen(
                    f"{count} of the last {self._window} records were rejected (delivery.max_reject_share is "
                    f"{self._max_share:g}), the last at {record.topic}/{record.partition}/{record.offset} "
                    f"in stage {cause.stage}: {cause.reason}"
                )


def _in_the_order_of_time(record: InputRecord) -> tuple[int, str, int, int]:
    return record.timestamp_ms, record.topic, record.partition, record.offset
