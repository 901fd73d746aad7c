"""The training loop: batches that serve all tasks, lazy updates of the table, averaging of the last epochs.

Two optimisers: Adam with decoupled weight decay for the network, and its sparse form for the table, which touches only the rows
that a batch saw (a dense step over 12 million weights would cost more than the rest of the batch).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from model import metrics
from model.batches import Examples, batch_of, batches_of_one_set, field_hidden, randomly_hidden, run, targets_of
from model.checkpoint import Checkpoints
from model.dataset import Labels
from model.losses import total_loss
from model.network import Network
from model.tasks import Task, TrainingSettings

_LEARNING_RATE_END = 0.05  # of the rate at the start
_EVALUATION_ROWS = 1024
_GRADIENT_NORM_MAX = 5.0
_MULTI_THRESHOLDS = np.linspace(-2.5, 0.5, 13)  # one for all labels; calibration settles one for each


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
class _Run:
    """All that changes while training goes on, so that it can be kept and taken up again."""

    network: Network
    table: Tensor
    dense: torch.optim.Optimizer
    sparse: torch.optim.Optimizer
    schedules: list[torch.optim.lr_scheduler.LambdaLR]
    random: np.random.Generator
    curves: list[CurvePoint]
    epochs_done: int = 0
    averaged: dict[str, Tensor] = field(default_factory=dict)  # the sum over the last epochs; the table is "table"
    averaged_epochs: int = 0

    def add_to_average(self) -> None:
        """Adds the present weights to the average's sum; counters, which are whole numbers, are taken as they are."""
        for name, value in {**self.network.state_dict(), "table": self.table.detach()}.items():
            before = self.averaged.get(name)
            self.averaged[name] = before + value if before is not None and value.is_floating_point() else value.clone()
        self.averaged_epochs += 1

    def take_average(self) -> None:
        """Makes the average the present weights."""
        count = self.averaged_epochs
        mean = {name: value / count if value.is_floating_point() else value for name, value in self.averaged.items()}
        with torch.no_grad():
            self.table.copy_(mean.pop("table"))
        self.network.load_state_dict(mean)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "table": self.table.detach(),
            "optimisers": [self.dense.state_dict(), self.sparse.state_dict()],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "random": json.dumps(self.random.bit_generator.state),
            "torch_random": torch.get_rng_state(),
            "curves": [astuple(point) for point in self.curves],
            "epochs_done": self.epochs_done,
            "averaged": self.averaged,
            "averaged_epochs": self.averaged_epochs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            self.table.copy_(state["table"])
        for optimiser, kept in zip((self.dense, self.sparse), state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(kept)
        self.random.bit_generator.state = json.loads(state["random"])
        torch.set_rng_state(state["torch_random"])
        self.curves[:] = [CurvePoint(*point) for point in state["curves"]]
        self.epochs_done = state["epochs_done"]
        self.averaged = state["averaged"]
        self.averaged_epochs = state["averaged_epochs"]


def fit(
    network: Network,
    table: Tensor,
    *,
    train: Examples,
    valid: Examples,
    tasks: Sequence[Task],
    settings: TrainingSettings,
    seed: int,
    checkpoints: Checkpoints | None = None,
    rows: NDArray[np.int64] | None = None,
) -> Trained:
    """Trains, and returns the average of the weights after each of the last epochs.

    Args:
        checkpoints: where the state is kept after each epoch, and from where an interrupted training goes on.
        rows: the training rows to use; by default all.
    """
    rows = np.arange(len(train)) if rows is None else rows
    batches = sum(-(-count // settings.batch_rows) for count in np.bincount(train.sets[rows]).tolist())
    training = _begun(network, table, settings=settings, steps=batches * settings.epochs, seed=seed)
    if checkpoints is not None and (state := checkpoints.load("fit")) is not None:
        training.restore(state)
    elif settings.linear_start:
        _evaluated(network, table, valid, tasks, epoch=0, curves=training.curves)
    with _progress() as progress:
        bar = progress.add_task("training", total=batches * settings.epochs, completed=batches * training.epochs_done)
        for epoch in range(training.epochs_done + 1, settings.epochs + 1):
            score = _epoch(training, train, rows, valid, tasks, settings, epoch=epoch, advance=lambda: progress.advance(bar))
            progress.console.print(f"epoch {epoch} of {settings.epochs}: mean valid score {score:.4f}", highlight=False)
            if checkpoints is not None:
                checkpoints.save("fit", training.state())
    training.take_average()
    _evaluated(network, training.table, valid, tasks, epoch=settings.epochs + 1, curves=training.curves)
    return Trained(
        network, training.table.detach(), tuple(training.curves), f"average of the last {training.averaged_epochs} epochs"
    )


def _begun(network: Network, table: Tensor, *, settings: TrainingSettings, steps: int, seed: int) -> _Run:
    table = table.clone().requires_grad_()
    dense = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    sparse = torch.optim.SparseAdam([table], lr=settings.table_learning_rate, betas=(0.9, 0.98))
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, _decay(steps)) for each in (dense, sparse)]
    return _Run(network, table, dense, sparse, schedules, random=np.random.default_rng(seed), curves=[])


def _epoch(
    training: _Run, train: Examples, rows: NDArray[np.int64], valid: Examples, tasks: Sequence[Task],
    settings: TrainingSettings, *, epoch: int, advance: Callable[[], None],
) -> float:  # fmt: skip
    """One pass over the training rows; returns the mean score on `valid`."""
    losses: dict[str, list[float]] = {task.name: [] for task in tasks}
    training.network.train()
    for index in batches_of_one_set(rows, train.sets[rows], rows_max=settings.batch_rows, random=training.random):
        optimisers = (training.dense, training.sparse)
        parts = _step(training.network, training.table, train, index, tasks, settings, training.random, optimisers=optimisers)
        for schedule in training.schedules:
            schedule.step()
        for name, value in parts.items():
            losses[name].append(value)
        advance()
    training.curves += [CurvePoint(epoch, "train", name, "loss", float(np.mean(each))) for name, each in losses.items() if each]
    score = _evaluated(training.network, training.table, valid, tasks, epoch=epoch, curves=training.curves)
    training.epochs_done = epoch
    if epoch > settings.epochs - settings.averaged_epochs:
        training.add_to_average()
    return score


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
        return "micro_f1", max(metrics.micro_f1(logits >= threshold, truth > 0.5) for threshold in _MULTI_THRESHOLDS)
    if task.entry.kind == "regression":
        return "r2", float(1 - ((logits[:, 0] - truth) ** 2).mean() / max(float(truth.var()), 1e-12))
    return "accuracy", float((logits.argmax(axis=1) == truth).mean())
