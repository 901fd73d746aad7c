"""Which labels a model gives how often: counted alike when a bundle is made and while it serves, so that the two can be compared.

The comparison is the population stability index, Σ (found − expected) · ln(found / expected). By custom below 0.1 is no shift and
above 0.25 a large one (Siddiqi, Credit Risk Scorecards, 2006).
"""

import numpy as np
from numpy.typing import NDArray

from model.bundle import TaskSpec

_SHARE_MIN = 1e-4  # a label that never came counts as this rare, or the logarithm has no end


def label_counts(task: TaskSpec, probabilities: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What a batch was answered with.

    Args:
        probabilities: float32 [rows, labels] of a task with labels.
    Returns:
        How often each label was the best (of a `multi` task: reached its threshold), int64 [labels], and the highest
        probability of each row, float32 [rows].
    """
    if task.kind == "multi":
        given = probabilities >= np.asarray(task.thresholds, dtype=probabilities.dtype)
        return np.count_nonzero(given, axis=0), probabilities.max(axis=1)
    best = probabilities.argmax(axis=1)
    return np.bincount(best, minlength=len(task.labels)), probabilities[np.arange(len(best)), best]


def shares(counts: NDArray[np.int64] | NDArray[np.float64]) -> tuple[float, ...]:
    """Counts as shares of their sum, four digits; empty where there are none."""
    total = counts.sum()
    return tuple((counts / total).round(4).tolist()) if total else ()


def stability_index(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The population stability index of two distributions, each float64 [labels] of counts or shares with a sum above 0."""
    p, q = (np.maximum(each / each.sum(), _SHARE_MIN) for each in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())
