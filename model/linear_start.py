"""The network's start: one linear model for each task, their coefficients factored into the table and the heads.

X·C, the decisions of all linear models at once, is near X·(C·V)·Vᵀ, where V holds the leading principal directions of the
decisions. So C·V is a table of embeddings for the n-grams and Vᵀ the heads that read them: a copy of the linear models
of limited rank, from which training goes on. On these data it is worth some points over a random start. The same
coefficients say which n-grams matter, and so which to keep where the table must be small.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC

from model.checkpoint import Checkpoints
from model.dataset import FAMILY_OF_FIELD, Labels
from model.features import Tokens
from model.tasks import Task
from model.teacher import out_of_fold, soft_targets

# A margin of 1 is near certainty for an SVM and near nothing for a softmax: used where no teacher tells the factor.
_LOGITS_PER_MARGIN = {"single": 4.0, "ordinal": 4.0, "multi": 2.5}
_ITERATIONS_MAX = 60
# A binary problem with fewer positive rows than this tells nothing.
_POSITIVE_ROWS_MIN = 2
# A task with many labels needs more directions; with an exponent of 1 every label would count alike.
_SHARE_EXPONENT = 0.75
_SAMPLE_ROWS = 30_000


@dataclass(frozen=True, slots=True)
class LinearModels:
    """Linear models of all tasks side by side, as logits.

    Attributes:
        weights: float32 [K, table rows]; biases: float32 [K].
        labels: of each task, with what the models taught where the task wants a teacher.
    """

    weights: NDArray[np.float32]
    biases: NDArray[np.float32]
    labels: tuple[Labels, ...]

    def kept(self, rows: NDArray[np.int64]) -> "LinearModels":
        """The same models for a table of only these rows."""
        return dataclasses.replace(self, weights=self.weights[:, rows])


@dataclass(frozen=True, slots=True)
class Start:
    """float32 arrays: table [rows, D], head_weight [K, D], head_bias [K]."""

    table: NDArray[np.float32]
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]


def linear_models(
    tasks: Sequence[Task],
    labels: Sequence[Labels],
    tokens: Tokens,
    *,
    table_rows: int,
    folds: NDArray[np.int64],
    progress: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
) -> LinearModels:
    """Fits one linear model for each column of each task.

    A task whose label is read from an input is fitted without that input's tokens.

    Args:
        folds: int64 [rows], see `teacher.folds_by_title`.
        checkpoints: where each task's models are kept; those of an interrupted training are taken up again.
    """
    weights: list[NDArray[np.float32]] = []
    biases: list[NDArray[np.float32]] = []
    with_teacher: list[Labels] = []
    for task, own in zip(tasks, labels, strict=True):
        progress(f"linear models: {task.name}")
        rows = np.flatnonzero(own.present)
        kept = None if checkpoints is None else checkpoints.narrowed(**_identity(task))
        state = None if kept is None else kept.load(f"linear-{task.name}")
        if state is None:
            matrix = text_matrix(tokens, table_rows=table_rows, hidden=task.hidden_input)[rows]
            state = _task_models(task, matrix, own.values[rows], folds[rows])
            if kept is not None:
                kept.save(f"linear-{task.name}", state)
        weights.append(state["weights"].numpy())
        biases.append(state["biases"].numpy())
        if state["taught"] is not None:
            taught = np.zeros((len(own.present), task.width), dtype=np.float16)
            taught[rows] = state["taught"].numpy()
            own = dataclasses.replace(own, taught=taught)
        with_teacher.append(own)
    return LinearModels(weights=np.concatenate(weights), biases=np.concatenate(biases), labels=tuple(with_teacher))


def _identity(task: Task) -> dict[str, Any]:
    """What a task's linear models depend on."""
    entry = task.entry.model_dump(
        mode="json", exclude={"weight", "teacher_share", "start_share", "shapes_representation", "top_k"}
    )
    return {"entry": entry, "labels": task.labels, "teaches": task.entry.teacher_share > 0}


def _task_models(task: Task, matrix: csr_matrix, values: NDArray[Any], folds: NDArray[np.int64]) -> dict[str, Any]:
    """A task's models as logits: weights [columns, table rows], biases [columns], and taught [rows, columns] or None."""
    weights, biases = _fit(task, matrix, values)
    scale, shift, answers = _LOGITS_PER_MARGIN.get(task.entry.kind, 1.0), 0.0, None
    if task.entry.teacher_share > 0:
        decisions = out_of_fold(task, matrix, values, folds=folds, fit=_fit)
        soft, calibration = soft_targets(task, decisions, values)
        scale, shift, answers = calibration.scale, calibration.shift, torch.from_numpy(soft)
    return {
        "weights": torch.from_numpy(weights * np.float32(scale)),
        "biases": torch.from_numpy(biases * np.float32(scale) + np.float32(shift)),
        "taught": answers,
    }


def importance(models: LinearModels, tasks: Sequence[Task], tokens: Tokens) -> NDArray[np.float64]:
    """How much each row of the table moves the decisions of all tasks: float64 [rows], each task by its share."""
    scale = _task_scale(models, tasks, tokens)
    mass = np.bincount(tokens.ids, weights=tokens.weights.astype(np.float64) ** 2, minlength=models.weights.shape[1])
    moved = np.zeros(models.weights.shape[1])
    for weights, factor in zip(models.weights, scale, strict=True):
        moved += (weights * factor) ** 2
    return mass * moved


def factored(models: LinearModels, tasks: Sequence[Task], tokens: Tokens, *, width: int) -> Start:
    """The copy of rank `width` that loses the least of the decisions on the training rows."""
    scale = _task_scale(models, tasks, tokens).astype(np.float32)
    scaled = models.weights * scale[:, None]  # [K, rows]
    decisions = _decisions(scaled, tokens)  # [sample, K]
    _, vectors = np.linalg.eigh((decisions.T @ decisions).astype(np.float64))
    leading = vectors[:, ::-1][:, :width].astype(np.float32)  # [K, D]
    # Fewer columns than directions: the others begin at nothing, for the deep part to fill.
    leading = np.pad(leading, ((0, 0), (0, width - leading.shape[1])))
    table: NDArray[np.float32] = np.asarray(scaled.T @ leading, dtype=np.float32)  # [rows, D]
    heads = leading / scale[:, None]
    # A row of the table and a column of the heads may trade a factor. The deep part wants inputs of unit size, and steps
    # of a given rate must be small against the rows they change.
    size = np.sqrt((_decisions(table.T, tokens) ** 2).mean()).item() or 1.0
    return Start(
        table=(table / size).astype(np.float32),
        head_weight=(heads * size).astype(np.float32),
        head_bias=models.biases,
    )


def _task_scale(models: LinearModels, tasks: Sequence[Task], tokens: Tokens) -> NDArray[np.float64]:
    """Factors [K] that give each task the share of the decisions' variance that its weight and labels deserve."""
    variance = _decisions(models.weights, tokens).astype(np.float64).var(axis=0)
    scale, first = np.ones(len(variance)), 0
    for task in tasks:
        place = slice(first, first + task.width)
        share = task.entry.start_share * task.width**_SHARE_EXPONENT
        scale[place] = np.sqrt(share / max(float(variance[place].sum()), 1e-12))
        first += task.width
    return scale


def _decisions(weights: NDArray[np.float32], tokens: Tokens) -> NDArray[np.float32]:
    """X·C for every `step`th row: float32 [sample, K]. A sample, because all rows by all columns is a gigabyte."""
    matrix = text_matrix(tokens, table_rows=weights.shape[1], hidden=None)
    step = max(1, matrix.shape[0] // _SAMPLE_ROWS)
    sample: NDArray[np.float32] = matrix[::step].astype(np.float32) @ np.ascontiguousarray(weights.T)
    return sample


def text_matrix(tokens: Tokens, *, table_rows: int, hidden: str | None) -> csr_matrix:
    """The rows' weights as a float64 matrix [rows, table rows], one field's tokens left out."""
    shown = np.ones(len(tokens.ids), dtype=np.bool_)
    if hidden is not None:
        shown = tokens.families != FAMILY_OF_FIELD[hidden]
    row = np.repeat(np.arange(len(tokens.counts)), tokens.counts)
    counts = np.bincount(row[shown], minlength=len(tokens.counts))
    pointers = np.concatenate([[0], np.cumsum(counts)])
    shape = (len(tokens.counts), table_rows)
    matrix = csr_matrix((tokens.weights[shown].astype(np.float64), tokens.ids[shown], pointers), shape=shape)
    matrix.sum_duplicates()  # a word of both title and description
    return matrix


def _fit(task: Task, matrix: csr_matrix, values: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights float32 [columns, table rows] and biases [columns]; a label that no row has stays 0."""
    weights = np.zeros((task.width, matrix.shape[1]), dtype=np.float32)
    biases = np.zeros(task.width, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be an optimum
        if task.entry.kind == "regression":
            ridge = Ridge(alpha=task.entry.start_alpha, solver="sparse_cg", tol=1e-3).fit(matrix, values)
            weights[0], biases[0] = ridge.coef_, float(ridge.intercept_)
            return weights, biases
        for column in range(task.width):
            is_label = values[:, column] > 0.5 if task.entry.kind == "multi" else values == column
            if _POSITIVE_ROWS_MIN <= is_label.sum() < len(is_label):
                model = LinearSVC(C=task.entry.start_c, max_iter=_ITERATIONS_MAX, random_state=0).fit(matrix, is_label)
                weights[column], biases[column] = model.coef_[0], model.intercept_.item()
    return weights, biases
