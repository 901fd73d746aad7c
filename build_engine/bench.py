"""Rows per second and latency of runners, by batch size."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.runner import Runner, TimedRunner
from build_engine.verify import Rows

_WARM_UP_S = 0.2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One runner with one batch size.

    Attributes:
        p50_ms, p99_ms: of a pass, from inputs in host memory to outputs in host memory.
        parts_ms: medians by part, where the runner takes the parts' times.
    """

    runner: str
    batch: int
    passes: int
    rows_per_s: float
    p50_ms: float
    p99_ms: float
    parts_ms: dict[str, float] = field(default_factory=dict)


def batches_up_to(largest: int) -> tuple[int, ...]:
    """1, 2, 4, … and the largest itself."""
    return tuple(sorted({*(1 << power for power in range(largest.bit_length())), largest}))


def bench(runners: Mapping[str, Runner], rows: Rows, batches: Sequence[int], *, seconds: float) -> list[Measurement]:
    """Measures every runner with every batch size, one after the other.

    Args:
        rows: repeated where a batch needs more.
        seconds: for each measurement, after a warm-up.
    """
    return [_measure(name, runner, rows, batch, seconds) for name, runner in runners.items() for batch in batches]


def _measure(name: str, runner: Runner, rows: Rows, batch: int, seconds: float) -> Measurement:
    index = np.arange(batch) % len(rows)
    feed = {name: np.ascontiguousarray(array[index]) for name, array in rows.features.as_feed().items()}
    _passes(runner, feed, min(seconds, _WARM_UP_S))
    taken_s, parts = _passes(runner, feed, seconds)
    p50, p99 = np.percentile(taken_s, [50, 99]) * 1000
    medians = {part: float(np.median([each[part] for each in parts])) for part in (parts[0] if parts else {})}
    return Measurement(name, batch, len(taken_s), batch * len(taken_s) / sum(taken_s), float(p50), float(p99), medians)


def _passes(runner: Runner, feed: Mapping[str, NDArray[Any]], seconds: float) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each pass until the time is up, at least one, and each pass's parts."""
    taken, parts = list[float](), list[dict[str, float]]()
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        runner.infer(feed)
        taken.append(time.perf_counter() - start)
        if isinstance(runner, TimedRunner):
            parts.append(dict(runner.parts_ms))
    return taken, parts


def as_document(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """For `--json`."""
    return [asdict(measurement) for measurement in measurements]
