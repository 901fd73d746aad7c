"""The training loop: batches that serve all tasks, lazy updates of the table, averaging of the last epochs.

Two optimisers: Adam with decoupled weight decay for the network, and its sparse form for the table, which touches only the rows
that a batch saw (a dense step over 12 million weights would cost more than the rest of the batch).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from model import metrics
from model.batches import Examples, batch_of, field_hidden, randomly_hidden, run, targets_of
from model.dataset import Labels
from model.losses import total_loss
from model.network import Network
from model.tasks import Task, TrainingSettings

_LEARNING_RATE_END = 0.05  # of the rate at the start
_EVALUATION_ROWS = 1024
_GRADIENT_NORM_MAX = 5.0


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One number of the learning curves: `train` losses and `valid` metrics per task and epoch."""

    epoch: int
    part: str
    task: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The network and table that ship, and how they came about."""

    network: Network
    table: Tensor
    curves: tuple[CurvePoint, ...]
    chosen: str


@dataclass(slots=True)
class _Weights:
    network: dict[str, Tensor]
    table: Tensor


def fit(
    network: Network,
    table: Tensor,
    *,
    train: Examples,
    valid: Examples,
    tasks: Sequence[Task],
    settings: TrainingSettings,
    seed: int,
) -> Trained:
    """Trains, and returns the best epoch or the average of the last ones, whichever is better on `valid`."""
    random = np.random.default_rng(seed)
    table = table.clone().requires_grad_()
    dense = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    sparse = torch.optim.SparseAdam([table], lr=settings.table_learning_rate, betas=(0.9, 0.98))
    batches = -(-len(train) // settings.batch_rows)
    steps = batches * settings.epochs
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, _decay(steps)) for each in (dense, sparse)]
    curves: list[CurvePoint] = []
    best, best_score, best_epoch = _Weights({}, table), -np.inf, 0
    last: list[_Weights] = []
    if settings.linear_start:
        _evaluated(network, table, valid, tasks, epoch=0, curves=curves)
    with _progress() as progress:
        bar = progress.add_task("training", total=steps)
        for epoch in range(1, settings.epochs + 1):
            losses: dict[str, list[float]] = {task.name: [] for task in tasks}
            network.train()
            for index in np.array_split(random.permutation(len(train)), batches):
                parts = _step(network, table, train, index, tasks, settings, random, optimisers=(dense, sparse))
                for schedule in schedules:
                    schedule.step()
                for name, value in parts.items():
                    losses[name].append(value)
                progress.advance(bar)
            curves += [
                CurvePoint(epoch, "train", name, "loss", float(np.mean(values))) for name, values in losses.items() if values
            ]
            score = _evaluated(network, table, valid, tasks, epoch=epoch, curves=curves)
            progress.console.print(f"epoch {epoch} of {settings.epochs}: mean valid score {score:.4f}", highlight=False)
            weights = _Weights(copy.deepcopy(network.state_dict()), table.detach().clone())
            last = [*last, weights][-settings.averaged_epochs :]
            if score > best_score:
                best, best_score, best_epoch = weights, score, epoch
    averaged = _average(last)
    network.load_state_dict(averaged.network)
    score = _evaluated(network, averaged.table, valid, tasks, epoch=settings.epochs + 1, curves=curves)
    if score >= best_score:
        return Trained(network, averaged.table, tuple(curves), f"average of the last {len(last)} epochs")
    network.load_state_dict(best.network)
    return Trained(network, best.table, tuple(curves), f"epoch {best_epoch}")


def _average(weights: Sequence[_Weights]) -> _Weights:
    """The mean of several epochs' weights; counters, which are whole numbers, from the last."""
    network = {
        name: torch.stack([each.network[name] for each in weights]).mean(dim=0) if value.is_floating_point() else value
        for name, value in weights[-1].network.items()
    }
    return _Weights(network, torch.stack([each.table for each in weights]).mean(dim=0))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )


def _decay(steps: int) -> Callable[[int], float]:
    """A cosine from 1 to `_LEARNING_RATE_END`."""
    return lambda step: _LEARNING_RATE_END + (1 - _LEARNING_RATE_END) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(
    network: Network, table: Tensor, train: Examples, index: NDArray[np.int64], tasks: Sequence[Task],
    settings: TrainingSettings, random: np.random.Generator, *, optimisers: Sequence[torch.optim.Optimizer],
) -> dict[str, float]:  # fmt: skip
    hidden = randomly_hidden(settings.hidden_input_probability, rows=len(index), random=random)
    cover_shown = random.random(len(index)) >= settings.cover_dropout
    batch = batch_of(train, index, hidden=hidden, cover_shown=cover_shown, dropout=settings.token_dropout, random=random)
    logits, _ = run(network, table, batch)
    targets = targets_of(train, tasks, index, hidden=hidden)
    loss, parts = total_loss(network.split(logits), targets, tasks, label_smoothing=settings.label_smoothing)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM_MAX)
    for optimiser in optimisers:
        optimiser.step()
    return parts


def logits_of(
    network: Network, table: Tensor, examples: Examples, index: NDArray[np.int64], *, hidden: str | None
) -> NDArray[np.float32]:
    """Logits [len(index), K] of some rows, one field hidden, nothing dropped."""
    network.eval()
    collected = []
    with torch.no_grad():
        for start in range(0, len(index), _EVALUATION_ROWS):
            part = index[start : start + _EVALUATION_ROWS]
            batch = batch_of(examples, part, hidden=field_hidden(hidden, rows=len(part)))
            collected.append(run(network, table, batch)[0].numpy())
    return np.concatenate(collected)


def task_logits(network: Network, table: Tensor, examples: Examples, tasks: Sequence[Task]) -> dict[str, NDArray[np.float32]]:
    """Each task's logits [rows, columns], made without the input its label is read from; 0 where it has no label."""
    borders = np.cumsum([0, *(task.width for task in tasks)])
    found = {task.name: np.zeros((len(examples), task.width), dtype=np.float32) for task in tasks}
    for hidden in dict.fromkeys(task.hidden_input for task in tasks):
        asked = [place for place, task in enumerate(tasks) if task.hidden_input == hidden]
        index = np.flatnonzero(np.any([examples.labels[place].present for place in asked], axis=0))
        if len(index):
            logits = logits_of(network, table, examples, index, hidden=hidden)
            for place in asked:
                found[tasks[place].name][index] = logits[:, borders[place] : borders[place + 1]]
    return found


def _evaluated(
    network: Network, table: Tensor, valid: Examples, tasks: Sequence[Task], *, epoch: int, curves: list[CurvePoint]
) -> float:
    """Adds the valid metrics to the curves; returns the mean of the tasks' scores."""
    scores = []
    outputs = task_logits(network, table, valid, tasks)
    for task, labels in zip(tasks, valid.labels, strict=True):
        rows = np.flatnonzero(labels.present)
        if len(rows):
            name, value = score_of(task, outputs[task.name][rows], labels_in(labels, rows))
            curves.append(CurvePoint(epoch, "valid", task.name, name, value))
            scores.append(value)
    return float(np.mean(scores)) if scores else 0.0


def labels_in(labels: Labels, rows: NDArray[np.int64]) -> Labels:
    return Labels(values=labels.values[rows], present=labels.present[rows])


def score_of(task: Task, logits: NDArray[np.float32], labels: Labels) -> tuple[str, float]:
    """A task's one number during training, before calibration: larger is better."""
    truth = labels.values
    if task.entry.kind == "multi":
        return "micro_f1", metrics.micro_f1(logits >= -0.6, truth > 0.5)  # a probability of 0.35
    if task.entry.kind == "regression":
        return "r2", float(1 - ((logits[:, 0] - truth) ** 2).mean() / max(float(truth.var()), 1e-12))
    return "accuracy", float((logits.argmax(axis=1) == truth).mean())
