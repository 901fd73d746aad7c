"""Metrics of predictions against labels, and of the simplest guess against the same labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

_CALIBRATION_BINS = 15
_CHANCE_DRAWS = 20
_MULTI_THRESHOLDS = np.linspace(-2.5, 0.5, 13)  # of logits, one for all labels; calibration settles one for each


def score(kind: str, logits: NDArray[np.float32], truth: NDArray[Any]) -> tuple[str, float]:
    """A task's one number before calibration, larger is better: its name and value.

    Args:
        kind: of the task; logits: [rows, columns]; truth: [rows], or [rows, labels] for `multi`.
    """
    if kind == "multi":
        return "micro_f1", max(micro_f1(logits >= threshold, truth > 0.5) for threshold in _MULTI_THRESHOLDS)
    if kind == "regression":
        return "r2", _explained(logits[:, 0].astype(np.float64), truth.astype(np.float64))
    return "accuracy", float((logits.argmax(axis=1) == truth).mean())


def _explained(values: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """The share of variance explained after the best slope, which calibration gives, but for a slope below 0."""
    if min(values.std(), truth.std()) < 1e-9:
        return 0.0
    return float(max(np.corrcoef(values, truth)[0, 1], 0.0) ** 2)


def single_label(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, macro-F1 over the labels that occur, top-5 accuracy, expected calibration error and what of it is chance.

    Args:
        probabilities: [rows, labels]; truth: [rows].
    """
    guess = probabilities.argmax(axis=1)
    rank = (probabilities > probabilities[np.arange(len(truth)), truth][:, None]).sum(axis=1)
    return {
        "accuracy": float((guess == truth).mean()),
        "macro_f1": float(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)),
        "top_5": float((rank < 5).mean()),
        "ece": calibration_error(probabilities.max(axis=1), guess == truth),
        "ece_by_chance": calibration_error_by_chance(probabilities.max(axis=1)),
    }


def multi_label(probabilities: NDArray[np.float32], truth: NDArray[np.float32], thresholds: Sequence[float]) -> dict[str, float]:
    """Micro- and macro-F1 at the thresholds, and how often the likeliest label is right.

    Args:
        probabilities: [rows, labels]; truth: [rows, labels] of 0 and 1.
    """
    given, true = probabilities >= np.asarray(thresholds), truth > 0.5
    first = true[np.arange(len(true)), probabilities.argmax(axis=1)]
    return {
        "micro_f1": micro_f1(given, true),
        "macro_f1": float(f1_score(true, given, average="macro", zero_division=0)),
        "precision_at_1": float(first.mean()),
    }


def micro_f1(given: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """F1 over all (row, label) pairs together."""
    return float(2 * (given & true).sum() / max(int(given.sum() + true.sum()), 1))


def regression(values: NDArray[np.float32], truth: NDArray[np.float64]) -> dict[str, float]:
    """Mean absolute error, share of variance explained, rank correlation, coverage of the interval.

    Args:
        values: [rows, 3] of value, low, high; truth: [rows], in the same units.
    """
    error = values[:, 0] - truth
    return {
        "mae": float(np.abs(error).mean()),
        "r2": float(1 - (error**2).mean() / max(float(truth.var()), 1e-12)),
        "spearman": float(np.corrcoef(_ranks(values[:, 0]), _ranks(truth))[0, 1]) if len(truth) > 1 else 0.0,
        "coverage": float(((values[:, 1] <= truth) & (truth <= values[:, 2])).mean()),
    }


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks, the mean rank for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = ends - (counts - 1) / 2.0
    return means[inverse]


def in_bands(values: NDArray[np.floating], edges: Sequence[float]) -> NDArray[np.int64]:
    """The band of each value, read off its edges."""
    return np.searchsorted(np.asarray(edges), values, side="right").astype(np.int64)


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over bins of equal width. Source: Guo et al., arXiv:1706.04599."""
    return float(sum(share * abs(mean - hit) for share, mean, hit in reliability(confidence, right)))


def calibration_error_by_chance(confidence: NDArray[np.floating]) -> float:
    """The mean calibration error that these rows would show if every confidence were exactly right: few rows, much chance."""
    random = np.random.default_rng(0)
    draws = (random.random((_CHANCE_DRAWS, len(confidence))) < confidence[None, :]).astype(np.bool_)
    return float(np.mean([calibration_error(confidence, right) for right in draws]))


def reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> list[tuple[float, float, float]]:
    """For each bin with rows: its share of them, their mean confidence, the share that was right."""
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    found = []
    for each in range(_CALIBRATION_BINS):
        inside = bins == each
        if inside.any():
            found.append((float(inside.mean()), float(confidence[inside].mean()), float(right[inside].mean())))
    return found


def majority_accuracy(truth: NDArray[np.int64]) -> float:
    """Accuracy of always guessing the commonest label of these very rows: the strictest form of that guess."""
    return float(np.bincount(truth).max() / len(truth))


def majority_micro_f1(truth: NDArray[np.float32]) -> float:
    """Micro-F1 of always giving the number of commonest labels that is best for these rows."""
    order = np.argsort(-truth.sum(axis=0), kind="stable")
    best = 0.0
    for count in range(1, min(truth.shape[1], 10) + 1):
        given = np.zeros(truth.shape, dtype=np.bool_)
        given[:, order[:count]] = True
        best = max(best, micro_f1(given, truth > 0.5))
    return best
