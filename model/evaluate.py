"""Metrics per task of a bundle, on rows prepared and predicted as the service does: its extractor, its graph, its covers.

A task whose label is read from an input is asked on listings from which that field was taken.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model import metrics
from model.bundle import TaskSpec
from model.dataset import Labels, Rows, labels_of
from model.features import FeatureExtractor, Features
from model.listing import Listing
from model.reference import label_counts, shares
from model.tasks import Task

_BATCH = 256
_REFERENCE_ROWS = 5_000
_CONFUSION_LABELS_MAX = 40


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One task's figures.

    Attributes:
        name: the task, and after a slash the set or currency where a task is also shown by those.
        metrics: by name; `majority` is the first metric of the simplest guess.
        reliability: see `metrics.reliability`.
        confusion: rows of true by columns of predicted labels; empty where there are too many.
    """

    name: str
    kind: str
    rows: int
    metrics: dict[str, float]
    reliability: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    labels: tuple[str, ...] = ()
    confusion: list[list[int]] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def open_session(path: Path, *, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def without(listing: Listing, field: str | None) -> Listing:
    """The listing as a shop would send it that does not know this field."""
    if field is None:
        return listing
    absent: dict[str, Any] = {field: () if field == "authors" else None}
    return dataclasses.replace(listing, **absent)


def predict(
    session: onnxruntime.InferenceSession, extractor: FeatureExtractor, rows: Rows, index: NDArray[np.int64],
    *, hidden: str | None, with_covers: bool = True,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """All outputs for the rows at `index`, one field hidden."""
    names = [output.name for output in session.get_outputs()]
    collected: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for start in range(0, len(index), _BATCH):
        part = index[start : start + _BATCH]
        features = features_of(extractor, rows, part, hidden=hidden, with_covers=with_covers)
        for name, values in zip(names, session.run(None, features.as_feed()), strict=True):
            collected[name].append(values)
    return {name: np.concatenate(values) for name, values in collected.items()}


def features_of(
    extractor: FeatureExtractor, rows: Rows, index: NDArray[np.int64], *, hidden: str | None, with_covers: bool = True
) -> Features:
    """The extractor's output for some rows, without one field."""
    covers = [rows.covers[rows.cover_of[row]] if with_covers and rows.cover_of[row] >= 0 else None for row in index]
    return extractor.extract([without(rows.listings[row], hidden) for row in index], covers)


def reference_shares(
    session: onnxruntime.InferenceSession, extractor: FeatureExtractor, rows: Rows, specs: Iterable[TaskSpec]
) -> dict[str, tuple[float, ...]]:
    """How often each label is given, over rows of all sets, whether they have that label or not: a service asks of all, too.

    At most `_REFERENCE_ROWS`, spread over all. A task that is asked only where a field is missing is asked with it hidden.
    """
    index = np.unique(np.linspace(0, len(rows) - 1, _REFERENCE_ROWS).astype(np.int64))
    found = {}
    labelled = [spec for spec in specs if spec.labels]
    for hidden in dict.fromkeys(spec.asked_only_where_missing for spec in labelled):
        outputs = predict(session, extractor, rows, index, hidden=hidden)
        for spec in labelled:
            if spec.asked_only_where_missing == hidden:
                found[spec.name] = shares(label_counts(spec, outputs[spec.name])[0])
    return {name: each for name, each in found.items() if each}


def evaluate(
    session: onnxruntime.InferenceSession,
    extractor: FeatureExtractor,
    rows: Rows,
    tasks: Sequence[Task],
    specs: Mapping[str, TaskSpec],
) -> list[Evaluation]:
    """Every task's figures on these rows; a task without a labelled row is left out."""
    labels = {task.name: labels_of(task, rows) for task in tasks}
    return evaluations(answers(session, extractor, rows, tasks, labels), rows, tasks, specs, labels)


def answers(
    session: onnxruntime.InferenceSession,
    extractor: FeatureExtractor,
    rows: Rows,
    tasks: Sequence[Task],
    labels: Mapping[str, Labels],
) -> dict[str, NDArray[np.float32]]:
    """Each task's output for the rows that have its label, in their order; a task without any is left out."""
    found: dict[str, NDArray[np.float32]] = {}
    for hidden in dict.fromkeys(task.hidden_input for task in tasks):
        asked = [task for task in tasks if task.hidden_input == hidden and labels[task.name].present.any()]
        if asked:
            index = np.flatnonzero(np.any([labels[task.name].present for task in asked], axis=0))
            outputs = predict(session, extractor, rows, index, hidden=hidden)
            found |= {task.name: outputs[task.name][labels[task.name].present[index]] for task in asked}
    return found


def evaluations(
    outputs: Mapping[str, NDArray[np.float32]],
    rows: Rows,
    tasks: Sequence[Task],
    specs: Mapping[str, TaskSpec],
    labels: Mapping[str, Labels],
) -> list[Evaluation]:
    """The figures of `outputs`, which are as of `answers`, in the order of the tasks."""
    return [
        each
        for task in tasks
        if task.name in outputs
        for each in task_evaluations(
            task, specs[task.name], rows, np.flatnonzero(labels[task.name].present), outputs[task.name], labels[task.name]
        )
    ]


def task_evaluations(
    task: Task, spec: TaskSpec, rows: Rows, index: NDArray[np.int64], output: NDArray[np.float32], labels: Labels
) -> Iterator[Evaluation]:
    """One task's figures from the graph's outputs for the rows at `index`, which all have its label."""
    truth = labels.values[index]
    if task.entry.kind == "regression":
        yield _regression(task, output, truth)
    elif task.entry.kind == "multi":
        figures = {"majority": metrics.majority_micro_f1(truth)}
        yield Evaluation(
            name=task.name, kind="multi", rows=len(index), labels=task.labels,
            metrics=metrics.multi_label(output, truth, spec.thresholds) | figures,
            reliability=metrics.reliability(output.ravel(), truth.ravel() > 0.5),
        )  # fmt: skip
    elif task.entry.kind == "ordinal":
        for key, (first, end) in task.groups.items():
            inside = np.flatnonzero((truth >= first) & (truth < end))
            if len(inside):
                group = output[inside, first:end]
                # As the assembly does: only the labels of the listing's currency are in play.
                group = group / np.maximum(group.sum(axis=1, keepdims=True), 1e-12)
                yield _single(f"{task.name}/{key}", "ordinal", group, truth[inside] - first, task.labels[first:end])
    else:
        whole = _single(task.name, "single", output, truth, task.labels)
        yield dataclasses.replace(whole, metrics=whole.metrics | _any_hit(task, rows, index, output))
        sets = np.array([rows.sets[row] for row in index])
        if task.name == "publisher" and len(task.entry.sets) > 1:
            for name in task.entry.sets:
                if (own := np.flatnonzero(sets == name)).size:
                    yield _single(f"{task.name}/{name}", "single", output[own], truth[own], task.labels)


def _single(
    name: str, kind: str, probabilities: NDArray[np.float32], truth: NDArray[np.int64], labels: tuple[str, ...]
) -> Evaluation:
    guess = probabilities.argmax(axis=1)
    figures = metrics.single_label(probabilities, truth) | {"majority": metrics.majority_accuracy(truth)}
    if kind == "ordinal":
        figures["bands_off"] = float(np.abs(guess - truth).mean())
    confusion: list[list[int]] = []
    if len(labels) <= _CONFUSION_LABELS_MAX:
        counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(counts, (truth, guess), 1)
        confusion = counts.tolist()
    return Evaluation(
        name=name, kind=kind, rows=len(truth), metrics=figures, labels=labels, confusion=confusion,
        reliability=metrics.reliability(probabilities.max(axis=1), guess == truth),
    )  # fmt: skip


def _any_hit(task: Task, rows: Rows, index: NDArray[np.int64], output: NDArray[np.float32]) -> dict[str, float]:
    """Where rows carry all labels that would do (`tags`, or `categories`), how often the guess is one of them."""
    if task.entry.field != "category":
        return {}
    guesses = output.argmax(axis=1)
    hits = []
    for row, guess in zip(index, guesses, strict=True):
        values = rows.values[row]
        would_do = values.get("categories") or values.get("tags") or []
        if values.get("category") not in would_do:  # the tags of this set are no categories
            return {}
        hits.append(task.labels[guess] in would_do)
    return {"any_hit": float(np.mean(hits))}


def _regression(task: Task, output: NDArray[np.float32], truth: NDArray[np.float32]) -> Evaluation:
    # The labels are logarithms in float32: 179 pages must not come back as 178.99999, in the band below.
    natural = np.exp(truth.astype(np.float64)).round(2) if task.entry.scale == "log" else truth.astype(np.float64)
    figures = metrics.regression(output, natural)
    figures["majority"] = float(np.abs(natural - np.median(natural)).mean())
    if task.entry.value_bands:
        true_band = metrics.in_bands(natural, task.entry.value_bands)
        figures["band_accuracy"] = float((metrics.in_bands(output[:, 0], task.entry.value_bands) == true_band).mean())
        figures["band_majority"] = metrics.majority_accuracy(true_band)
    return Evaluation(name=task.name, kind="regression", rows=len(truth), metrics=figures)
