"""The loss: a weighted sum over tasks, each a mean over the rows that have its label.

A batch holds rows of all sets. A row without a task's label, or whose label stands among its inputs this time, is masked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.tasks import Task

# Columns of topics or shelves are many and mostly 0; their sum over labels, scaled, weighs like a cross-entropy.
_MULTI_SCALE = 0.5
_HUBER_DELTA = 1.0
_BANDS_WEIGHT = 0.3  # a regression's own loss is some tenths
_LOSS_MIN = 1e-6
# Progress of one step is some hundredths: with this rate a factor can double in an epoch or two.
_FAMO_RATE = 1.0
_FAMO_DECAY = 1e-3


@dataclass(frozen=True, slots=True)
class Target:
    """A task's labels in a batch: values as in `dataset.Labels`, present float32 [B] of 0 and 1."""

    values: Tensor
    present: Tensor

    @classmethod
    def of(cls, values: NDArray[Any], present: NDArray[np.bool_]) -> "Target":
        return cls(values=torch.from_numpy(values), present=torch.from_numpy(present.astype(np.float32)))


def task_losses(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Target], tasks: Sequence[Task], *, label_smoothing: float
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tasks' masked losses times their weights, and the bare ones for the curves; absent where no row has a label."""
    losses: dict[str, Tensor] = {}
    parts: dict[str, float] = {}
    for task in tasks:
        target = targets[task.name]
        rows = target.present.sum()
        if rows == 0:
            continue
        each = row_losses(task, outputs[task.name], target, label_smoothing=label_smoothing)  # [B]
        # Between a mean over the batch, which starves tasks with few labels, and one over the labelled rows, which lets a
        # lone row shout.
        losses[task.name] = task.entry.weight * (each * target.present).sum() / (rows * len(each)).sqrt()
        parts[task.name] = float((each.detach() * target.present).sum() / rows)
    return losses, parts


class Weighing(nn.Module):
    """Adds the tasks' losses up.

    "static": as they are, with the task file's weights. "uncertainty": each times a learned factor that its size pays for.
    "famo": with factors that let all tasks progress at one rate.
    Source: Kendall et al., CVPR 2018, arXiv:1705.07115; Liu et al., NeurIPS 2023, arXiv:2306.03792.
    """

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        super().__init__()
        self._kind = kind
        self._place = {name: place for place, name in enumerate(names)}
        self.scores = nn.Parameter(torch.zeros(len(names)))

    @property
    def compares(self) -> bool:
        """Whether `learn` wants the losses of a batch after its step, too."""
        return self._kind == "famo"

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to descend, of at least one task's loss."""
        values, own = torch.stack(list(losses.values())), self._own(losses)  # [tasks in the batch]
        if self._kind == "uncertainty":
            return (values * torch.exp(-own) + own / 2).sum()
        if self._kind == "famo":
            shares = functional.softmax(own, dim=0).detach()
            positive = values.clamp(min=_LOSS_MIN)
            return (shares * positive.log()).sum() / (shares / positive).sum().detach()
        return values.sum()

    def learn(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """FAMO's own step: a task that progressed more than the others will weigh less."""
        progress = [(before[name].clamp(min=_LOSS_MIN) / after[name].clamp(min=_LOSS_MIN)).log().detach() for name in before]
        objective = (functional.softmax(self._own(before), dim=0) * torch.stack(progress)).sum()
        (gradient,) = torch.autograd.grad(objective, self.scores)
        with torch.no_grad():
            self.scores.sub_(_FAMO_RATE * (gradient + _FAMO_DECAY * self.scores))

    def _own(self, losses: Mapping[str, Tensor]) -> Tensor:
        return self.scores[[self._place[name] for name in losses]]


def row_losses(task: Task, logits: Tensor, target: Target, *, label_smoothing: float) -> Tensor:
    """Each row's loss, float32 [B], of logits [B, columns]; of a row without the label it means nothing."""
    values = target.values
    if task.entry.kind == "multi":
        return functional.binary_cross_entropy_with_logits(logits, values, reduction="none").sum(dim=1) * _MULTI_SCALE  # [B]
    if task.entry.kind == "regression":
        each = functional.huber_loss(logits[:, 0], values, reduction="none", delta=_HUBER_DELTA)  # [B]
        if task.edges:
            bands = torch.bucketize(values, torch.tensor(task.edges), right=True)  # [B]
            each = each + _BANDS_WEIGHT * functional.cross_entropy(logits[:, 1:], bands, reduction="none")  # [B]
        return each
    each = functional.cross_entropy(logits, values, reduction="none", label_smoothing=label_smoothing)  # [B]
    if task.entry.kind == "ordinal":
        each = each + squared_earth_movers_distance(logits, values, groups=list(task.groups.values()))
    return each


def squared_earth_movers_distance(logits: Tensor, values: Tensor, *, groups: Sequence[tuple[int, int]]) -> Tensor:
    """Distance between the predicted and the true distribution over the ordered labels of the true label's group.

    Args:
        logits: float32 [B, labels]; values: int64 [B]; groups: (first, end) of each group of ordered labels.
    Returns:
        float32 [B]: the sum over labels of the squared difference of the two cumulative distributions.
    Source: Hou, Yu & Samaras, arXiv:1611.05916.
    """
    distance = torch.zeros(len(logits))
    for first, end in groups:
        inside = (values >= first) & (values < end)
        cumulative = functional.softmax(logits[:, first:end], dim=1).cumsum(dim=1)  # [B, end - first]
        steps = torch.arange(first, end)
        true = (steps[None, :] >= values[:, None]).float()  # [B, end - first]
        distance = distance + inside * (cumulative - true).square().sum(dim=1)
    return distance
