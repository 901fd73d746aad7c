"""From logits to numbers that mean what they say, settled on the validation part.

A temperature for each single-label and ordinal task, a scale and a shift for each multi-label task, a threshold for each of
its labels, and the shifts that turn a regression into an interval holding 80 % of the values. A single-label task's temperature
then bends with the row's own confidence: where labels are partly a matter of convention, rows that look certain are less so
than one temperature for all rows can say. The order of a row's labels stays.
Source: Guo et al., ICML 2017, arXiv:1706.04599, for temperatures; Tomani et al., ECCV 2022, arXiv:2102.12182, for one that
depends on the row; Platt 1999 for scale and shift.

A multi-label task's labels know nothing of each other, but a row has one or two of them: where nothing else is likely, a label
is likelier than it looks, and where much is, less likely. So each row's scores move together by what its labels are in sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from model.dataset import Labels
from model.metrics import micro_f1
from model.minimise import minimise
from model.tasks import Task

_TEMPERATURES = np.geomspace(0.05, 8.0, 240)  # an SVM's margins want far below 1
_INTERVAL, _MIDDLE = (0.10, 0.90), 0.50
_SLOPES = (0.1, 1.5)
_SPREAD_MIN = 1e-9
_OFF_AN_EDGE = 1e-4
_FAR = 1e9
_STRAIGHT = (0.0, 0.0, 0.0)
# No bend, and no rivals, count as so many rows: where all rows were right, nothing is known of those that look uncertain.
_PRIOR_ROWS = 10.0
_PROBABILITY_MIN = 1e-6
_STRONG = 9.0  # as a score, a label that is all but sure
_BAND_SHARPNESS = 20.0
_THRESHOLDS = np.linspace(0.05, 0.85, 81)
_NEWTON_STEPS = 15
# The precision of a label's shift before any row is seen; a row that could as well have the label adds a quarter.
_SHIFT_PRIOR = 60.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """A task's last step: probabilities are softmax or sigmoid of logits * scale + shift.

    Attributes:
        low, shift, high: for a regression, added to logit * scale for the interval's lower end, the value itself (so that
            as many are above as below) and the upper end.
        bend: for a single task, (a, b, c): the logits are scaled by exp(a + b·m + c·m²), too, where m is the largest of the
            row's probabilities without that.
        rivals: for a multi task, (a, b, c): a + b·log(sum of the row's probabilities) + c·log(sum of their exponentiated
            scores) is added to all of the row's scores, both sums taken without that.
        thresholds: for a multi task, one a label.
    """

    scale: float = 1.0
    shift: float = 0.0
    low: float = 0.0
    high: float = 0.0
    bend: tuple[float, float, float] = _STRAIGHT
    rivals: tuple[float, float, float] = _STRAIGHT
    thresholds: tuple[float, ...] = ()


def calibrate(task: Task, logits: NDArray[np.float32], labels: Labels) -> Calibration:
    """Fits the calibration of one task.

    Args:
        logits: float32 [rows, columns] of the validation rows, made without the input the label is read from.
        labels: of the same rows; only those present are used. Without any the calibration changes nothing.
    """
    rows = np.flatnonzero(labels.present)
    if not len(rows):
        return Calibration(thresholds=(0.5,) * (task.width if task.entry.kind == "multi" else 0))
    own, values = logits[rows], labels.values[rows]
    scale, shift = scale_and_shift(task, own, values)
    if task.entry.kind == "regression":
        low, high = np.quantile(values - own[:, 0] * scale, _INTERVAL)
        return Calibration(scale=scale, shift=shift, low=float(low), high=float(high))
    scores = own * np.float32(scale) + np.float32(shift)
    if task.entry.kind == "multi":
        rivals = _rivals(scores, values)
        scores = beside_own(torch.from_numpy(scores), torch.tensor(rivals)).numpy()
        return Calibration(scale=scale, shift=shift, rivals=rivals, thresholds=_thresholds(scores, values))
    return Calibration(scale=scale, bend=_bend(scores, values) if task.entry.kind == "single" else _STRAIGHT)


def scale_and_shift(task: Task, logits: NDArray[np.float32], values: NDArray[Any]) -> tuple[float, float]:
    """The calibration's first step alone, of rows that all have a label; without any it changes nothing."""
    if not len(values):
        return 1.0, 0.0
    if task.entry.kind == "regression":
        scale = _slope(logits[:, 0].astype(np.float64), values.astype(np.float64))
        return scale, float(np.quantile(values - logits[:, 0] * scale, _MIDDLE))
    if task.entry.kind == "multi":
        return _platt(logits, values)
    return _inverse_temperature(logits, values, groups=list(task.groups.values())), 0.0


def bend_factors(most: torch.Tensor, bends: torch.Tensor) -> torch.Tensor:
    """What `Calibration.bend` scales by: float32 [B, tasks] of each task's largest probability [B, tasks] and bend [tasks, 3]."""
    constant, linear, square = bends.unbind(dim=1)
    return torch.exp(constant + most * (linear + most * square))


def bent(scores: torch.Tensor, bend: torch.Tensor) -> torch.Tensor:
    """Scores float32 [B, labels] after the temperature, as `Calibration.bend`, here a tensor [3], says."""
    most = functional.softmax(scores, dim=1).amax(dim=1, keepdim=True)  # [B, 1]
    return scores * bend_factors(most, bend.unsqueeze(0))


def _bend(scores: NDArray[np.float32], values: NDArray[np.int64]) -> tuple[float, float, float]:
    """What makes it most probable that the likeliest labels were right and wrong as they were; drawn towards no bend at all."""
    inputs = torch.from_numpy(scores)
    right = torch.from_numpy(scores.argmax(axis=1) == values).float()
    parameters = torch.zeros(3, requires_grad=True)

    def loss() -> torch.Tensor:
        confidence = functional.softmax(bent(inputs, parameters), dim=1).amax(dim=1)
        confidence = confidence.clamp(_PROBABILITY_MIN, 1 - _PROBABILITY_MIN)
        return functional.binary_cross_entropy(confidence, right) + _PRIOR_ROWS * parameters.square().sum() / len(values)

    minimise([parameters], loss, iterations_max=60)
    constant, linear, square = parameters.detach().tolist()
    return constant, linear, square


def beside_rivals(scores: torch.Tensor, rivals: torch.Tensor, task_of: torch.Tensor) -> torch.Tensor:
    """Scores float32 [B, labels] of one or more multi tasks, after scale and shift, as `Calibration.rivals` says.

    Args:
        rivals: float32 [tasks, 3]; task_of: float32 [labels, tasks], 1 where a label is a task's.
    """
    constant, by_count, by_strength = rivals.unbind(dim=1)  # [tasks]
    counts = (scores.sigmoid() @ task_of).clamp(min=_PROBABILITY_MIN).log()  # [B, tasks]
    # Cut, so that half precision holds the sums.
    strengths = (scores.clamp(max=_STRONG).exp() @ task_of).clamp(min=_PROBABILITY_MIN).log()  # [B, tasks]
    return scores + (constant + by_count * counts + by_strength * strengths) @ task_of.T


def beside_own(scores: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
    """As `beside_rivals`, of one task, whose rivals are a tensor [3]."""
    return beside_rivals(scores, rivals.unsqueeze(0), torch.ones(scores.shape[1], 1))


def _rivals(scores: NDArray[np.float32], values: NDArray[np.float32]) -> tuple[float, float, float]:
    """What makes the labels likeliest; drawn towards nothing at all."""
    inputs, truth = torch.from_numpy(scores), torch.from_numpy(values)
    parameters = torch.zeros(3, requires_grad=True)

    def loss() -> torch.Tensor:
        losses = functional.binary_cross_entropy_with_logits(beside_own(inputs, parameters), truth, reduction="none")
        return losses.sum(dim=1).mean() + _PRIOR_ROWS * parameters.square().sum() / len(values)

    minimise([parameters], loss, iterations_max=60)
    constant, by_count, by_strength = parameters.detach().tolist()
    return constant, by_count, by_strength


def in_its_band(value: torch.Tensor, bands: torch.Tensor, edges: Sequence[float]) -> torch.Tensor:
    """Values float32 [B], each moved as little as puts it into the most probable of its bands, logits float32 [B, bands].

    Between two bands that are equally probable the result is in between, so that rounding moves it a little and not a lot.
    """
    # Not on an edge: rounding may move it across.
    gaps = [(edge, _OFF_AN_EDGE * max(1.0, abs(edge))) for edge in edges]
    lowest = torch.tensor([-_FAR, *(edge + gap for edge, gap in gaps)])
    highest = torch.tensor([*(edge - gap for edge, gap in gaps), _FAR])
    inside = torch.minimum(torch.maximum(value.unsqueeze(1), lowest), highest)  # [B, bands]
    return (functional.softmax(bands * _BAND_SHARPNESS, dim=1) * inside).sum(dim=1)


def _inverse_temperature(logits: NDArray[np.float32], values: NDArray[np.int64], *, groups: Sequence[tuple[int, int]]) -> float:
    """The factor with the least negative log-likelihood, within the true label's group where there are groups."""
    scores, truth = torch.from_numpy(logits), torch.from_numpy(values)
    if groups:
        inside = torch.zeros_like(scores, dtype=torch.bool)
        for first, end in groups:
            inside[(truth >= first) & (truth < end), first:end] = True
        scores = scores.masked_fill(~inside, -1e9)
    # As if two rows more had been seen and one of them been wrong (Platt 1999): where all were right, not all will be.
    smoothing = 0.0 if groups else 1 / (len(truth) + 2)
    losses = [
        float(functional.cross_entropy(scores / temperature, truth, label_smoothing=smoothing)) for temperature in _TEMPERATURES
    ]
    return float(1.0 / _TEMPERATURES[int(np.argmin(losses))])


def _slope(predicted: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """By how much differences between predictions must shrink to be those of the values: rows seen in training are
    predicted too boldly where labels are noisy.
    """
    spread = float(predicted.var())
    if spread < _SPREAD_MIN:
        return 1.0
    covariance = float(((predicted - predicted.mean()) * (values - values.mean())).mean())
    return float(np.clip(covariance / spread, *_SLOPES))


def _platt(logits: NDArray[np.float32], values: NDArray[np.float32]) -> tuple[float, float]:
    scores, truth = torch.from_numpy(logits), torch.from_numpy(values)
    parameters = torch.tensor([1.0, 0.0], requires_grad=True)

    def loss() -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(scores * parameters[0] + parameters[1], truth)

    minimise([parameters], loss, iterations_max=40)
    scale, shift = parameters.detach().tolist()
    return float(scale), float(shift)


def _thresholds(scores: NDArray[np.float32], values: NDArray[np.float32]) -> tuple[float, ...]:
    """For each label the threshold at which it is as probable as every other label is at its own; micro-F1 is best so.

    Each label's own best F1 instead, found among so few rows, is lower on rows never seen: departments .530 against .545.
    Source: Lipton, Elkan & Narayanaswamy, ECML 2014, arXiv:1402.1892, for one threshold on probabilities.
    """
    shifts = _label_shifts(scores, values)
    probabilities = _sigmoid(scores + shifts)
    common = max(_THRESHOLDS, key=lambda threshold: micro_f1(probabilities >= threshold, values > 0.5))
    return tuple(float(round(each, 4)) for each in _sigmoid(np.log(common / (1 - common)) - shifts))


def _label_shifts(scores: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What makes each label as frequent as its probabilities say, float32 [labels]; drawn towards none where rows are few."""
    shifts = np.zeros(scores.shape[1], dtype=np.float32)
    for _ in range(_NEWTON_STEPS):
        probabilities = _sigmoid(scores + shifts)
        gradient = (probabilities - values).sum(axis=0) + _SHIFT_PRIOR * shifts
        curvature = (probabilities * (1 - probabilities)).sum(axis=0) + _SHIFT_PRIOR
        shifts -= np.clip(gradient / curvature, -1.0, 1.0)
    return shifts


def _sigmoid(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    found: NDArray[np.floating] = 1.0 / (1.0 + np.exp(-scores))
    return found
