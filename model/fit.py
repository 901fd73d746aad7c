"""The training loop: batches that serve all tasks, Adam with decoupled weight decay, averaging of the last epochs.

The table is not trained: going on from the linear models by gradients loses more on rows never seen than it gains, since each
step fits the very rows it sees.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import metrics
from model.batches import Examples, batch_of, batches_of_one_set, field_hidden, randomly_hidden, run, targets_of
from model.checkpoint import Checkpoints
from model.losses import Target, Weighing, task_losses
from model.minimise import minimise
from model.network import Network
from model.progress import progress_bar
from model.schedule import cosine
from model.tasks import Task
from model.training_settings import TrainingSettings

_LEARNING_RATE_END = 0.05  # of the rate at the start
_EVALUATION_ROWS = 1024
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_GRADIENT_NORM_MAX = 5.0
_RELATIONS_RATE = 30.0  # times the network's: scores must cross whole units, where weights move by hundredths


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
    """The network that ships, and how it came about; `shares` as of `_drawn_back`, `cover_shares` as of `_covers_joined`."""

    network: Network
    curves: tuple[CurvePoint, ...]
    chosen: str
    shares: dict[str, float]
    cover_shares: dict[str, float]


@dataclass(slots=True)
class _Run:
    """All that changes while training goes on, so that it can be kept and taken up again."""

    network: Network
    weighing: Weighing
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    random: np.random.Generator
    curves: list[CurvePoint]
    epochs_done: int = 0
    averaged: dict[str, Tensor] = field(default_factory=dict)  # the sum over the last epochs
    averaged_epochs: int = 0

    def add_to_average(self) -> None:
        """Adds the present weights to the average's sum; counters, which are whole numbers, are taken as they are."""
        for name, value in self.network.state_dict().items():
            before = self.averaged.get(name)
            self.averaged[name] = before + value if before is not None and value.is_floating_point() else value.clone()
        self.averaged_epochs += 1

    def take_average(self) -> None:
        """Makes the average the present weights."""
        count = self.averaged_epochs
        mean = {name: value / count if value.is_floating_point() else value for name, value in self.averaged.items()}
        self.network.load_state_dict(mean)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "weighing": self.weighing.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": json.dumps(self.random.bit_generator.state),
            "torch_random": torch.get_rng_state(),
            "curves": [astuple(point) for point in self.curves],
            "epochs_done": self.epochs_done,
            "averaged": self.averaged,
            "averaged_epochs": self.averaged_epochs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.weighing.load_state_dict(state["weighing"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.random.bit_generator.state = json.loads(state["random"])
        torch.set_rng_state(state["torch_random"])
        self.curves[:] = [CurvePoint(*point) for point in state["curves"]]
        self.epochs_done = state["epochs_done"]
        self.averaged = state["averaged"]
        self.averaged_epochs = state["averaged_epochs"]


def fit(
    network: Network,
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
    start = copy.deepcopy(network)
    training = _begun(network, tasks, settings=settings, steps=batches * settings.epochs, seed=seed)
    if checkpoints is not None and (state := checkpoints.load("fit")) is not None:
        training.restore(state)
    else:
        _evaluated(network, valid, tasks, epoch=0, curves=training.curves)
    with progress_bar() as progress:
        bar = progress.add_task("training", total=batches * settings.epochs, completed=batches * training.epochs_done)
        for epoch in range(training.epochs_done + 1, settings.epochs + 1):
            score = _epoch(training, train, rows, valid, tasks, settings, epoch=epoch, advance=lambda: progress.advance(bar))
            progress.console.print(f"epoch {epoch} of {settings.epochs}: mean valid score {score:.4f}", highlight=False)
            if checkpoints is not None:
                checkpoints.save("fit", training.state())
    training.take_average()
    shares = _drawn_back(network, start, valid, tasks)
    cover_shares = _covers_joined(network, valid, tasks)
    _evaluated(network, valid, tasks, epoch=settings.epochs + 1, curves=training.curves)
    chosen = f"average of the last {training.averaged_epochs} epochs, each task drawn back towards its start"
    return Trained(network, tuple(training.curves), chosen, shares, cover_shares)


def _drawn_back(network: Network, start: Network, valid: Examples, tasks: Sequence[Task]) -> dict[str, float]:
    """Keeps of each task's change the share that is best on `valid`, and returns the shares.

    Training finds what generalises and what does not; half of the change often has more of the former. Logits are linear in
    the heads, so heads in between give logits in between. Source: Wortsman et al., CVPR 2022, arXiv:2109.01903.
    """
    before, after = task_logits(start, valid, tasks), task_logits(network, valid, tasks)
    shares, first = {}, 0
    for place, (task, labels) in enumerate(zip(tasks, valid.labels, strict=True)):
        columns, first = slice(first, first + task.width), first + task.width
        rows = np.flatnonzero(labels.present)
        if not len(rows):
            continue
        old, new, truth = before[task.name][rows], after[task.name][rows], labels.values[rows]
        scores = [metrics.score(task.entry.kind, old + np.float32(share) * (new - old), truth)[1] for share in _SHARES]
        shares[task.name] = _SHARES[int(np.argmax(scores))]
        with torch.no_grad():
            for now, then in ((network.wide.weight, start.wide.weight), (network.wide.bias, start.wide.bias)):
                now[columns] = torch.lerp(then[columns], now[columns], shares[task.name])
            for now, then in zip(network.deep.of_task(place), start.deep.of_task(place), strict=True):
                now.copy_(torch.lerp(then, now, shares[task.name]))
    return shares


def _covers_joined(network: Network, valid: Examples, tasks: Sequence[Task]) -> dict[str, float]:
    """Lets each task take the share of what the cover says by itself that makes `valid`'s labels likeliest; returns the shares.

    Likelihood, since a cover moves few answers across the border between right and wrong: chosen by accuracy on 1,800 rows the
    share of `department` was 0 to .1, by likelihood .57, which is right of .006 more than no cover on rows never seen.
    """
    shares, covers = {}, network.get_buffer("cover_shares")
    without = task_logits(network, valid, tasks)
    covers.fill_(1.0)
    whole = task_logits(network, valid, tasks)
    covers.zero_()
    first = 0
    for task, labels in zip(tasks, valid.labels, strict=True):
        columns, first = slice(first, first + task.width), first + task.width
        rows = np.flatnonzero(labels.present & (valid.cover_of >= 0))
        if len(rows):
            target = Target.of(labels.values[rows], labels.present[rows])
            shares[task.name] = _likeliest_share(task, without[task.name][rows], whole[task.name][rows], target)
            covers[columns] = shares[task.name]
    return shares


def _likeliest_share(task: Task, without: NDArray[np.float32], whole: NDArray[np.float32], target: Target) -> float:
    """How far to go from the one logits to the others for the least loss, at the scale and shift that suit it; 0 to 1."""
    begin, change = torch.from_numpy(without), torch.from_numpy(whole - without)
    share, scale, shift = (torch.tensor(value, requires_grad=True) for value in (0.5, 0.0, 0.0))

    def loss() -> Tensor:
        logits = (begin + share * change) * scale.exp() + shift
        return task_losses({task.name: logits}, {task.name: target}, [task], label_smoothing=0.0)[0][task.name]

    minimise([share, scale, shift], loss, iterations_max=60)
    return round(min(max(share.item(), 0.0), 1.0), 3)


def _begun(network: Network, tasks: Sequence[Task], *, settings: TrainingSettings, steps: int, seed: int) -> _Run:
    weighing = Weighing(settings.weighing, [task.name for task in tasks])
    relations = network.deep.scores
    learned: list[dict[str, Any]] = [
        {"params": [each for each in network.parameters() if each is not relations and each.requires_grad]},
        {"params": [relations], "lr": settings.learning_rate * _RELATIONS_RATE, "weight_decay": 0.0},
    ]
    if settings.weighing == "uncertainty":
        learned.append({"params": weighing.parameters(), "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine(steps, end=_LEARNING_RATE_END))
    return _Run(network, weighing, optimiser, schedule, random=np.random.default_rng(seed), curves=[])


def _epoch(
    training: _Run, train: Examples, rows: NDArray[np.int64], valid: Examples, tasks: Sequence[Task],
    settings: TrainingSettings, *, epoch: int, advance: Callable[[], None],
) -> float:  # fmt: skip
    """One pass over the training rows; returns the mean score on `valid`."""
    losses: dict[str, list[float]] = {task.name: [] for task in tasks}
    training.network.train()
    for index in batches_of_one_set(rows, train.sets[rows], rows_max=settings.batch_rows, random=training.random):
        parts = _step(training, train, index, tasks, settings)
        training.schedule.step()
        for name, value in parts.items():
            losses[name].append(value)
        advance()
    training.curves += [CurvePoint(epoch, "train", name, "loss", float(np.mean(each))) for name, each in losses.items() if each]
    score = _evaluated(training.network, valid, tasks, epoch=epoch, curves=training.curves)
    training.epochs_done = epoch
    if epoch > settings.epochs - settings.averaged_epochs:
        training.add_to_average()
    return score


def _step(
    training: _Run, train: Examples, index: NDArray[np.int64], tasks: Sequence[Task], settings: TrainingSettings
) -> dict[str, float]:
    network, random = training.network, training.random
    hidden = randomly_hidden(settings.hidden_input_probability, rows=len(index), random=random, all_text=settings.text_dropout)
    cover_shown = random.random(len(index)) >= settings.cover_dropout
    batch = batch_of(train, index, hidden=hidden, cover_shown=cover_shown)
    targets = targets_of(train, tasks, index, hidden=hidden)

    def losses() -> tuple[dict[str, Tensor], dict[str, float]]:
        return task_losses(network.split(run(network, batch)[0]), targets, tasks, label_smoothing=settings.label_smoothing)

    before, parts = losses()
    if not before:
        return parts
    training.optimiser.zero_grad(set_to_none=True)
    training.weighing(before).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM_MAX)
    training.optimiser.step()
    if training.weighing.compares:
        with torch.no_grad():
            after, _ = losses()
        training.weighing.learn(before, after)
    return parts


def logits_of(network: Network, examples: Examples, index: NDArray[np.int64], *, hidden: str | None) -> NDArray[np.float32]:
    """Logits [len(index), K] of some rows, one field hidden, nothing dropped."""
    network.eval()
    collected = []
    with torch.no_grad():
        for start in range(0, len(index), _EVALUATION_ROWS):
            part = index[start : start + _EVALUATION_ROWS]
            batch = batch_of(examples, part, hidden=field_hidden(hidden, rows=len(part)))
            collected.append(run(network, batch)[0].numpy())
    return np.concatenate(collected)


def task_logits(network: Network, examples: Examples, tasks: Sequence[Task]) -> dict[str, NDArray[np.float32]]:
    """Each task's logits [rows, columns], made without the input its label is read from; 0 where it has no label."""
    borders = np.cumsum([0, *(task.width for task in tasks)])
    found = {task.name: np.zeros((len(examples), task.width), dtype=np.float32) for task in tasks}
    for hidden in dict.fromkeys(task.hidden_input for task in tasks):
        asked = [place for place, task in enumerate(tasks) if task.hidden_input == hidden]
        index = np.flatnonzero(np.any([examples.labels[place].present for place in asked], axis=0))
        if len(index):
            logits = logits_of(network, examples, index, hidden=hidden)
            for place in asked:
                found[tasks[place].name][index] = logits[:, borders[place] : borders[place + 1]]
    return found


def _evaluated(network: Network, valid: Examples, tasks: Sequence[Task], *, epoch: int, curves: list[CurvePoint]) -> float:
    """Adds the valid metrics to the curves; returns the mean of the tasks' scores."""
    scores = []
    outputs = task_logits(network, valid, tasks)
    for task, labels in zip(tasks, valid.labels, strict=True):
        rows = np.flatnonzero(labels.present)
        if len(rows):
            name, value = metrics.score(task.entry.kind, outputs[task.name][rows], labels.values[rows])
            curves.append(CurvePoint(epoch, "valid", task.name, name, value))
            scores.append(value)
    return float(np.mean(scores)) if scores else 0.0
