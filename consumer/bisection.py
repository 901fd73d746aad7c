"""Finding the records that a batch fails on, in few passes, while the others go through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from consumer.inference import OutOfMemory

log = structlog.get_logger(__name__)
T = TypeVar("T")
Rows = list[int]


@dataclass(slots=True)
class Sifted(Generic[T]):
    """What became of a batch: each row is in exactly one part, or blamed.

    Attributes:
        parts: rows that went through together, and what came of them.
        blamed: row to the failure that it causes.
    """

    parts: list[tuple[Rows, T]] = field(default_factory=list)
    blamed: dict[int, Exception] = field(default_factory=dict)


def sift(count: int, run: Callable[[Rows], T], *, failures: type[Exception]) -> Sifted[T]:
    """Runs rows 0 … count - 1, and where they fail finds the rows at fault.

    One row at fault costs at most ceil(log2 count) + 1 passes more than the one that failed: a binary search that keeps what
    went through, then one pass for all that was not looked at. Each further one costs at most as much again. Where memory did
    not suffice the batch is first halved, once, and each half stands for itself: that is a matter of size before it is one of
    a record.

    Args:
        run: a pass over some rows; raises one of `failures` where a row among them breaks it. May be called at most
            (k + 2) · (ceil(log2 count) + 1) times for k rows at fault.
    """
    sifted: Sifted[T] = Sifted()
    waiting, may_halve = [list(range(count))], True
    while waiting:
        rows = waiting.pop()
        error = _attempt(rows, run, failures, sifted)
        if error is None:
            continue
        log.warning("batch_failed_bisecting", records=len(rows), error=str(error))
        if may_halve and len(rows) > 1 and isinstance(error, OutOfMemory | MemoryError):
            waiting += _halves(rows)
            may_halve = False
        elif rest := _blame_one(rows, error, run, failures, sifted):
            waiting.append(rest)
    return sifted


def _blame_one(rows: Rows, error: Exception, run: Callable[[Rows], T], failures: type[Exception], sifted: Sifted[T]) -> Rows:
    """The first row at fault of a batch that failed is blamed; returns the rows that no pass went through yet."""
    suspects, rest = rows, list[int]()
    while len(suspects) > 1:
        left, right = _halves(suspects)
        failure = _attempt(left, run, failures, sifted)
        if failure is None:
            suspects = right
        else:
            suspects, rest, error = left, right + rest, failure
    if len(rows) > 1 and not rest:
        # Only the whole batch failed so far, which may have been an accident. No pass is due for a rest: it goes into a proof.
        failure = _attempt(suspects, run, failures, sifted)
        if failure is None:
            return rest
        error = failure
    sifted.blamed[suspects[0]] = error
    return rest


def _attempt(rows: Rows, run: Callable[[Rows], T], failures: type[Exception], sifted: Sifted[T]) -> Exception | None:
    try:
        sifted.parts.append((rows, run(rows)))
    except failures as error:
        return error
    return None


def _halves(rows: Sequence[int]) -> tuple[Rows, Rows]:
    half = len(rows) // 2
    return list(rows[:half]), list(rows[half:])
