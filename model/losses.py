"""The loss: a weighted sum over tasks, each a mean over the rows that have its label.

A batch holds rows of all sets. A row without a task's label, or whose label stands among its inputs this time, is masked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.tasks import Task

# Columns of topics or shelves are many and mostly 0; their sum over labels, scaled, weighs like a cross-entropy.
_MULTI_SCALE = 0.5
_HUBER_DELTA = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A task's labels in a batch: values as in `dataset.Labels`, present float32 [B] of 0 and 1, taught float32 [B, columns]."""

    values: Tensor
    present: Tensor
    taught: Tensor | None = None


def total_loss(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Target], tasks: Sequence[Task], *, label_smoothing: float
) -> tuple[Tensor, dict[str, float]]:
    """The weighted, masked sum of the tasks' losses, and each task's own for the curves (absent where no row has a label)."""
    total = torch.zeros(())
    parts: dict[str, float] = {}
    for task in tasks:
        target = targets[task.name]
        rows = target.present.sum()
        if rows == 0:
            continue
        each = _row_losses(task, outputs[task.name], target, label_smoothing=label_smoothing)  # [B]
        # Between a mean over the batch, which starves tasks with few labels, and one over the labelled rows, which lets a
        # lone row shout.
        loss = (each * target.present).sum() / (rows * len(each)).sqrt()
        total = total + task.entry.weight * loss
        parts[task.name] = float((each.detach() * target.present).sum() / rows)
    return total, parts


def _row_losses(task: Task, logits: Tensor, target: Target, *, label_smoothing: float) -> Tensor:
    values, taught = target.values, target.taught
    share = 0.0 if taught is None else task.entry.teacher_share
    if task.entry.kind == "multi":
        mixed = values if taught is None else torch.lerp(values, taught, share)  # [B, labels]
        return functional.binary_cross_entropy_with_logits(logits, mixed, reduction="none").sum(dim=1) * _MULTI_SCALE  # [B]
    if task.entry.kind == "regression":
        mixed = values if taught is None else torch.lerp(values, taught[:, 0], share)  # [B]
        return functional.huber_loss(logits[:, 0], mixed, reduction="none", delta=_HUBER_DELTA)  # [B]
    each = functional.cross_entropy(logits, values, reduction="none", label_smoothing=label_smoothing)  # [B]
    if task.entry.kind == "ordinal":
        each = each + squared_earth_movers_distance(logits, values, groups=list(task.groups.values()))
    if taught is None:
        return each
    return torch.lerp(each, functional.cross_entropy(logits, taught, reduction="none"), share)  # [B]


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
