"""Does learning the tasks together pay? One network for all tasks against one network a task, same trunk, data and settings.

With all labels, and with a share of the labels of one task at a time. Every network of a seed sees the same rows, the same
kept labels and the same number of epochs. The gain is Δm, the mean over tasks of the relative difference of the scores.
Source: Maninis et al., CVPR 2019, arXiv:1904.08918, for Δm.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.checkpoint import Checkpoints
from model.dataset import DataError, Labels, Rows, build_vocabulary, folds_by_title, labels_of, read_rows
from model.features import FeatureExtractor, Tokens
from model.fit import fit, task_logits
from model.linear_start import linear_models
from model.prepare import Part, prepared
from model.tasks import Task, TaskFile, resolve
from model.word_vectors import word_vectors

_CONFIDENCE = 1.96


@dataclass(frozen=True, slots=True)
class Run:
    """The score of one task from one trained network.

    Attributes:
        arrangement: "together" or "alone".
        scarce: the task of whose labels only `share` were kept; None where all were.
        score: accuracy, micro-F1 or the share of variance explained, on `valid`, before calibration.
        parameters: numbers in the network, table included; seconds: of its training.
    """

    task: str
    arrangement: str
    scarce: str | None
    share: float
    seed: int
    score: float
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Gain:
    """Together against alone for one task and share: mean relative gain over seeds and half of its 95 % interval."""

    task: str
    share: float
    together: float
    alone: float
    gain: float
    half_width: float


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


def study(
    folders: Sequence[Path],
    task_file: TaskFile,
    *,
    seeds: int,
    scarce: Sequence[str],
    shares: Sequence[float],
    kept: Path,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Run]:
    """Trains everything that is compared and gives each score as it is known, so that an interrupted study is not lost.

    Args:
        scarce: the tasks of which labels are taken away, one at a time; shares: what is kept of them.
        kept: a folder for the linear models, which the networks of all seeds and arrangements share.
    """
    train = read_rows(folders, part="train", settings=task_file.features, limit=limit)
    valid = read_rows(folders, part="valid", settings=task_file.features, limit=limit)
    tasks = tuple(resolve(entry, train.by_set()) for entry in task_file.task)
    vocabulary = build_vocabulary(train.listings, task_file.features, rows_max=task_file.training.table_rows)
    extractor = FeatureExtractor(task_file.features, vocabulary)
    vectors = None
    if task_file.training.word_vectors:
        vectors = word_vectors(train.listings, vocabulary, task_file.features, progress=progress)
    data = _Data(
        train, valid, extractor.tokens(train.listings), extractor.tokens(valid.listings), vocabulary.rows, vectors,
        folds_by_title(train.listings, folds=task_file.training.folds), tasks, task_file, Checkpoints(kept, {}),
    )  # fmt: skip
    for seed in range(seeds):
        labels = [labels_of(task, train) for task in tasks]
        progress(f"seed {seed}: all tasks together")
        yield from _runs(data, tasks, labels, scarce=None, share=1.0, seed=seed, arrangement="together")
        for place, task in enumerate(tasks):
            progress(f"seed {seed}: {task.name} alone")
            yield from _runs(data, [task], [labels[place]], scarce=None, share=1.0, seed=seed, arrangement="alone")
        for name in scarce:
            place = next(place for place, task in enumerate(tasks) if task.name == name)
            for share in shares:
                fewer = list(labels)
                fewer[place] = _some_of(labels[place], share=share, seed=seed)
                progress(f"seed {seed}: {share:.0%} of the labels of {name}, together and alone")
                together = _runs(data, tasks, fewer, scarce=name, share=share, seed=seed, arrangement="together")
                yield from (each for each in together if each.task == name)
                yield from _runs(data, [tasks[place]], [fewer[place]], scarce=name, share=share, seed=seed, arrangement="alone")


def read_runs(path: Path) -> list[Run]:
    """What a study wrote.

    Raises:
        DataError: the file cannot be read or a line is not a run.
    """
    try:
        return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected the JSON lines that `model study` writes: {error}") from error


def gains(runs: Sequence[Run]) -> list[Gain]:
    """Each task's gain; runs without their counterpart are left out."""
    found = []
    keys = dict.fromkeys((run.task, run.share) for run in runs)
    for task, share in keys:
        by_seed: dict[str, dict[int, float]] = {"together": {}, "alone": {}}
        for run in runs:
            if (run.task, run.share) == (task, share) and run.scarce in (None, task):
                by_seed[run.arrangement][run.seed] = run.score
        both = sorted(set(by_seed["together"]) & set(by_seed["alone"]))
        if not both:
            continue
        together, alone = (np.array([by_seed[name][seed] for seed in both]) for name in ("together", "alone"))
        relative = (together - alone) / np.maximum(np.abs(alone), 1e-9)
        error = float(relative.std(ddof=1) / np.sqrt(len(both))) if len(both) > 1 else float("nan")
        found.append(Gain(task, share, float(together.mean()), float(alone.mean()), float(relative.mean()), _CONFIDENCE * error))
    return found


def _runs(data: _Data, tasks: Sequence[Task], labels: Sequence[Labels], **about: Any) -> Iterator[Run]:
    started = time.monotonic()
    scores, parameters = _scores(data, tasks, labels, seed=about["seed"])
    seconds = round(time.monotonic() - started, 1)
    for name, score in scores.items():
        yield Run(task=name, score=score, parameters=parameters, seconds=seconds, **about)


def _some_of(labels: Labels, *, share: float, seed: int) -> Labels:
    keep = np.random.default_rng(seed).random(len(labels.present)) < share
    return dataclasses.replace(labels, present=labels.present & keep)


def _scores(data: _Data, tasks: Sequence[Task], labels: Sequence[Labels], *, seed: int) -> tuple[dict[str, float], int]:
    """One network's score for each of its tasks, and its parameters. It sees the rows that have a label of these tasks."""
    torch.manual_seed(seed)
    models = linear_models(
        tasks, labels, data.tokens, vectors=data.vectors, table_rows=data.table_rows, folds=data.folds,
        progress=lambda line: None, checkpoints=data.linear,
    )  # fmt: skip
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
    outputs = task_logits(trained.network, begun.valid, tasks)
    scores = {}
    for task, own in zip(tasks, unseen, strict=True):
        index = np.flatnonzero(own.present)
        if len(index):
            scores[task.name] = metrics.score(task.entry.kind, outputs[task.name][index], own.values[index])[1]
    return scores, sum(each.numel() for each in begun.network.parameters()) + begun.table.size
