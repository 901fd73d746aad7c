"""Does learning the tasks together pay? One network for all tasks against one network a task, same trunk, data and settings.

With all labels, and with a share of the labels of one task at a time. Every network of a seed sees the same rows, the same
kept labels and the same number of epochs. No language model teaches them (`taught_share`): it would be tuned anew for every
share of labels. What the study says stands in study_runs.py.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model import metrics
from model.checkpoint import Checkpoints
from model.dataset import DataError, Labels, Rows, build_vocabulary, folds_by_title, labels_of, read_rows
from model.features import FeatureExtractor, Tokens
from model.fit import fit, task_logits
from model.linear_models import linear_models
from model.network import Network
from model.prepare import Part, prepared
from model.study_runs import Run
from model.tasks import Task, TaskFile, resolve
from model.text_matrix import text_matrix
from model.word_vectors import word_vectors

_TIMED_ROWS, _TIMED_BATCH, _TIMES = 2048, 64, 5


@dataclass(frozen=True, slots=True)
class _Data:
    train: Rows
    valid: Rows
    tokens: Tokens
    unseen: Tokens
    table_rows: int
    vectors: NDArray[np.float32] | None
    folds: NDArray[np.int64]
    tasks: tuple[Task, ...]
    settings: TaskFile
    linear: Checkpoints  # each task's linear models are fitted once, whoever asks
    timed: Sequence[csr_matrix]  # batches of `valid` rows, float32 [64, table rows]
    recipe: str


@dataclass(frozen=True, slots=True)
class _Planned:
    """A network to be trained, and the tasks whose scores are wanted of it."""

    arrangement: str
    tasks: tuple[str, ...]
    told: tuple[str, ...]
    scarce: str | None
    share: float
    seed: int

    def __str__(self) -> str:
        of = f"all {len(self.tasks)} tasks together" if self.arrangement == "together" else f"{self.tasks[0]} alone"
        return f"seed {self.seed}: {of}" + (f", {self.share:.0%} of the labels of {self.scarce}" if self.scarce else "")

    def key(self, task: str) -> tuple[str, str, str | None, float, int]:
        return (task, self.arrangement, self.scarce, self.share, self.seed)


def study(
    folders: Sequence[Path],
    task_file: TaskFile,
    *,
    seeds: int,
    scarce: Sequence[str],
    shares: Sequence[float],
    kept: Path,
    done: Sequence[Run] = (),
    limit: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Run]:
    """Trains everything that is compared and gives each score as it is known, so that an interrupted study is not lost.

    Args:
        scarce: the tasks of which labels are taken away, one at a time; shares: what is kept of them.
        kept: a folder for the linear models, which the networks of all seeds and arrangements share.
        done: what an earlier study found; its networks are not trained again.

    Raises:
        DataError: the data cannot be used, or `done` is of other data, tasks or limit.
    """
    data = _data(folders, task_file, kept=kept, limit=limit, progress=progress)
    if others := {run.recipe for run in done} - {data.recipe}:
        raise DataError(f"expected earlier runs of this very data, task file and limit ({data.recipe}), found {sorted(others)}")
    found = {run.key for run in done}
    planned = list(_plan([task.name for task in data.tasks], seeds=seeds, scarce=scarce, shares=shares))
    for number, each in enumerate(planned, start=1):
        if found.issuperset(each.key(name) for name in each.told):
            continue
        progress(f"network {number} of {len(planned)}: {each}")
        yield from _runs(data, each)


def _data(
    folders: Sequence[Path], task_file: TaskFile, *, kept: Path, limit: int | None, progress: Callable[[str], None]
) -> _Data:
    train = read_rows(folders, part="train", settings=task_file.features, limit=limit)
    valid = read_rows(folders, part="valid", settings=task_file.features, limit=limit)
    tasks = tuple(resolve(entry, train.by_set()) for entry in task_file.task)
    vocabulary = build_vocabulary(train.listings, task_file.features, rows_max=task_file.training.table_rows)
    extractor = FeatureExtractor(task_file.features, vocabulary)
    vectors = None
    if task_file.training.word_vectors:
        vectors = word_vectors(train.listings, vocabulary, task_file.features, progress=progress)
    unseen = extractor.tokens(valid.listings)
    identity = [train.fingerprint, valid.fingerprint, limit, task_file.model_dump(mode="json")]
    return _Data(
        train, valid, extractor.tokens(train.listings), unseen, vocabulary.rows, vectors,
        folds_by_title(train.listings, folds=task_file.training.folds), tasks, task_file, Checkpoints(kept, {}),
        timed=_timed(unseen, table_rows=vocabulary.rows),
        recipe=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12],
    )  # fmt: skip


def _timed(tokens: Tokens, *, table_rows: int) -> list[csr_matrix]:
    matrix = text_matrix(tokens, table_rows=table_rows, hidden=None).astype(np.float32)
    rows = np.unique(np.linspace(0, matrix.shape[0] - 1, _TIMED_ROWS).astype(np.int64))
    return [matrix[rows[start : start + _TIMED_BATCH]] for start in range(0, len(rows), _TIMED_BATCH)]


def _plan(tasks: Sequence[str], *, seeds: int, scarce: Sequence[str], shares: Sequence[float]) -> Iterator[_Planned]:
    names = tuple(tasks)
    for seed in range(seeds):
        yield _Planned("together", names, names, None, 1.0, seed)
        for name in names:
            yield _Planned("alone", (name,), (name,), None, 1.0, seed)
        for name in scarce:
            for share in shares:
                yield _Planned("together", names, (name,), name, share, seed)
                yield _Planned("alone", (name,), (name,), name, share, seed)


def _runs(data: _Data, planned: _Planned) -> Iterator[Run]:
    tasks = [task for task in data.tasks if task.name in planned.tasks]
    labels = [labels_of(task, data.train) for task in tasks]
    labels = [
        _some_of(own, share=planned.share, seed=planned.seed) if task.name == planned.scarce else own
        for task, own in zip(tasks, labels, strict=True)
    ]
    found = _trained(data, tasks, labels, seed=planned.seed)
    for name in planned.told:
        if name in found.scores:
            yield Run(
                task=name, arrangement=planned.arrangement, scarce=planned.scarce, share=planned.share, seed=planned.seed,
                score=found.scores[name], parameters=found.parameters, seconds=found.seconds, microseconds=found.microseconds,
                recipe=data.recipe,
            )  # fmt: skip


def _some_of(labels: Labels, *, share: float, seed: int) -> Labels:
    keep = np.random.default_rng(seed).random(len(labels.present)) < share
    return dataclasses.replace(labels, present=labels.present & keep)


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one network: the score of each of its tasks, and what `Run` says of its cost."""

    scores: dict[str, float]
    parameters: int
    seconds: float
    microseconds: float


def _trained(data: _Data, tasks: Sequence[Task], labels: Sequence[Labels], *, seed: int) -> _Found:
    """Trains one network. It sees the rows that have a label of these tasks."""
    torch.manual_seed(seed)
    models = linear_models(
        tasks, labels, data.tokens, vectors=data.vectors, table_rows=data.table_rows, folds=data.folds,
        progress=lambda line: None, checkpoints=data.linear,
    )  # fmt: skip
    started = time.monotonic()
    unseen = [labels_of(task, data.valid) for task in tasks]
    labelled = np.flatnonzero(np.any([own.present for own in labels], axis=0))
    begun = prepared(
        data.settings, tasks, models, train=Part(data.train, data.tokens, labels),
        valid=Part(data.valid, data.unseen, unseen), folds=data.folds, seed=seed, rows=labelled,
    )  # fmt: skip
    trained = fit(
        begun.network,
        train=begun.train,
        valid=begun.valid,
        tasks=tasks,
        settings=data.settings.training,
        seed=seed,
        rows=labelled,
    )
    seconds = time.monotonic() - started
    outputs = task_logits(trained.network, begun.valid, tasks)
    scores = {}
    for task, own in zip(tasks, unseen, strict=True):
        index = np.flatnonzero(own.present)
        if len(index):
            scores[task.name] = metrics.score(task.entry.kind, outputs[task.name][index], own.values[index])[1]
    return _Found(
        scores,
        parameters=sum(each.numel() for each in begun.network.parameters()) + begun.table.size,
        seconds=round(seconds, 1),
        microseconds=round(_microseconds(trained.network, begun.table, data.timed), 2),
    )


def _microseconds(network: Network, table: NDArray[np.float32], batches: Sequence[csr_matrix]) -> float:
    """For one listing, the best of some passes over all batches: the table's rows summed up, then the network, no cover."""
    network.eval()
    least = float("inf")
    with torch.no_grad():
        for _ in range(_TIMES):
            started = time.perf_counter()
            for batch in batches:
                text = torch.from_numpy(batch @ table)  # [64, D]
                none, first = torch.zeros(1, network.cover_projection.in_features), torch.zeros(len(text), dtype=torch.int64)
                network(text, none, first, torch.zeros(len(text), 1))
            least = min(least, time.perf_counter() - started)
    return float(1e6 * least / sum(batch.shape[0] for batch in batches))
