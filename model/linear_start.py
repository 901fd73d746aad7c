"""The table and the heads' start: linear models of all tasks, their coefficients factored.

A task's linear model is the sum of two: an SVM over the n-grams, which remembers, and a regression over the sum of the words'
vectors (word_vectors.py), which generalises. Both are linear in the n-grams, so one row of coefficients for each n-gram holds
them. X·C, the decisions of all tasks at once, is near X·(C·V)·Vᵀ, where V holds the leading principal directions of the
decisions: C·V is the table of embeddings that ships, and Vᵀ the heads that read it.

The models have seen the labels of the rows that the network is trained on next, whose decisions are therefore too good to
learn from. So each model is fitted once more for each fold, without the fold's rows, and a training row is read through the
table of its own fold. Serving reads through the table of all rows.
"""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch.nn import functional

from model import metrics
from model.calibrate import calibrate
from model.checkpoint import Checkpoints
from model.dataset import FAMILY_OF_FIELD, Labels
from model.features import Tokens
from model.tasks import Task

# A margin of 1 is near certainty for an SVM and near nothing for a softmax.
_LOGITS_PER_MARGIN = {"single": 4.0, "ordinal": 4.0, "multi": 2.5}
_BAND_LOGITS_PER_MARGIN = 4.0
_ITERATIONS_MAX = 60
# A binary problem with fewer positive rows than this tells nothing.
_POSITIVE_ROWS_MIN = 2
# A task with many labels needs more directions; with an exponent of 1 every label would count alike.
_SHARE_EXPONENT = 0.75
# Of the differences between a task's columns in how much they vary; 1 would make them alike.
_EVENED = 0.25
# A direction's size to this power is what table and heads trade; 0 would leave it all to the table.
_TRADED = 0.25
_SIZE_SHARE_MIN = 1e-4  # of the largest direction's: what is next to nothing must not be blown up
_SIZE_MIN = 1e-12
_SAMPLE_ROWS = 30_000
# How much of the words' model joins the SVM's margins: what scores best on rows that neither has seen.
_RATIOS = (0.0, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)
_WORDS_PENALTY = 3e-2
_WORDS_ITERATIONS = 50
_PARALLEL_ROWS_MIN = 5_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task's model is (SVM + ratio * words' model) * scale + shift."""

    ratio: float
    scale: float
    shift: float


@dataclass(frozen=True, slots=True)
class LinearModels:
    """Linear models of all tasks side by side, as logits: first those of all rows, then those without each fold.

    Attributes:
        weights: float16 [1 + folds, K, table rows]; biases: float32 [1 + folds, K].
        svm_weights: float16 [K, table rows], svm_biases: float32 [K]: the SVMs of all rows alone, as logits.
        recipes: how each task's two models became one.
    """

    weights: NDArray[np.float16]
    biases: NDArray[np.float32]
    svm_weights: NDArray[np.float16]
    svm_biases: NDArray[np.float32]
    recipes: tuple[Recipe, ...]

    def kept(self, rows: NDArray[np.int64]) -> "LinearModels":
        """The same models for a table of only these rows."""
        return dataclasses.replace(self, weights=self.weights[:, :, rows], svm_weights=self.svm_weights[:, rows])


@dataclass(frozen=True, slots=True)
class Start:
    """float32 arrays: table [rows, D], fold_tables [folds, rows, D], head_weight [K, D], head_bias [K], directions [K, D].

    A table is coefficients times `directions`.
    """

    table: NDArray[np.float32]
    fold_tables: NDArray[np.float32]
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]
    directions: NDArray[np.float32]


def linear_models(
    tasks: Sequence[Task],
    labels: Sequence[Labels],
    tokens: Tokens,
    *,
    vectors: NDArray[np.float32] | None,
    table_rows: int,
    folds: NDArray[np.int64],
    progress: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
    recipes: Sequence[Recipe] | None = None,
) -> LinearModels:
    """Fits the linear models of each column of each task.

    A task whose label is read from an input is fitted without that input's tokens.

    Args:
        vectors: float32 [table rows, W] of the words' meanings, see `word_vectors`; None for SVMs alone.
        folds: int64 [rows], see `folds_by_title`.
        checkpoints: where each task's models are kept; those of an interrupted training are taken up again.
        recipes: where they are known of a fit before this one, nothing is left to be settled without a fold, so the models
            of all rows are the only ones.
    """
    states = []
    for place, (task, own) in enumerate(zip(tasks, labels, strict=True)):
        rows = np.flatnonzero(own.present)
        progress(f"linear models: {task.name}, {task.width} columns, {len(rows)} rows")
        recipe = None if recipes is None else recipes[place]
        depends_on = {"entry": _identity(task), "labels": task.labels, "recipe": None if recipe is None else astuple(recipe)}
        kept = None if checkpoints is None else checkpoints.narrowed(**depends_on)
        name = f"linear-{task.name}-{hashlib.sha256(own.present.tobytes()).hexdigest()[:12]}"
        state = None if kept is None else kept.load(name)
        if state is None:
            matrix = text_matrix(tokens, table_rows=table_rows, hidden=task.hidden_input)[rows]
            state = _task_models(task, matrix, own.values[rows], folds[rows], vectors=vectors, recipe=recipe)
            if kept is not None:
                kept.save(name, state)
        states.append(state)
    weights, biases = (np.concatenate([state[name].numpy() for state in states], axis=1) for name in ("weights", "biases"))
    svm_weights, svm_biases = (
        np.concatenate([state[name].numpy() for state in states]) for name in ("svm_weights", "svm_biases")
    )
    found = tuple(Recipe(*state["recipe"]) for state in states)
    return LinearModels(weights=weights, biases=biases, svm_weights=svm_weights, svm_biases=svm_biases, recipes=found)


def _identity(task: Task) -> dict[str, object]:
    """What a task's linear models depend on."""
    return task.entry.model_dump(mode="json", exclude={"weight", "start_share", "shapes_representation", "top_k"})


# Weights [columns, features] and biases [columns].
_Model = tuple[NDArray[np.float32], NDArray[np.float32]]


def _task_models(
    task: Task, matrix: csr_matrix, values: NDArray[Any], folds: NDArray[np.int64], *,
    vectors: NDArray[np.float32] | None, recipe: Recipe | None,
) -> dict[str, Any]:  # fmt: skip
    """A task's models as logits: weights [1 + folds, columns, table rows] and biases, the SVM's alone, and the recipe."""
    inside = [np.ones(len(folds), dtype=np.bool_)]
    if recipe is None:
        inside += [folds != fold for fold in range(int(folds.max()) + 1)]
    # Processes, since liblinear's random numbers are global.
    jobs = min(len(inside), os.cpu_count() or 1) if len(values) >= _PARALLEL_ROWS_MIN else 1
    svms: list[_Model] = Parallel(n_jobs=jobs)(delayed(_svm)(task, matrix[rows], values[rows]) for rows in inside)
    words: list[_Model] = []
    meanings = np.zeros((0, 0), dtype=np.float32)
    if vectors is not None:
        meanings = np.asarray(matrix.astype(np.float32) @ vectors, dtype=np.float32)  # [rows, W]
        words = [_words_model(task, meanings[rows], values[rows]) for rows in inside]
    if recipe is None:
        unseen = _out_of_fold(svms, matrix, folds, width=task.width)
        recipe = _recipe(task, values, unseen, _out_of_fold(words, meanings, folds, width=task.width) if words else None)
    ratio, scale, shift = (np.float32(each) for each in astuple(recipe))
    both = svms
    if vectors is not None:
        both = [(svm[0] + ratio * (word[0] @ vectors.T), svm[1] + ratio * word[1]) for svm, word in zip(svms, words, strict=True)]
    margin = _margin(task)
    return {
        "weights": torch.from_numpy(np.stack([weights * scale for weights, _ in both]).astype(np.float16)),
        "biases": torch.from_numpy(np.stack([biases * scale + shift for _, biases in both])),
        "svm_weights": torch.from_numpy((svms[0][0] * margin).astype(np.float16)),
        "svm_biases": torch.from_numpy(svms[0][1] * margin),
        "recipe": list(astuple(recipe)),
    }


def _margin(task: Task) -> np.float32:
    return np.float32(_LOGITS_PER_MARGIN.get(task.entry.kind, 1.0))


def _recipe(task: Task, values: NDArray[Any], unseen: NDArray[np.float32], by_words: NDArray[np.float32] | None) -> Recipe:
    """Settled on decisions for rows that neither model saw: those of the SVM and those of the words' model."""
    ratio = 0.0
    if by_words is not None:
        scores = [metrics.score(task.entry.kind, (unseen + each * by_words) * _margin(task), values)[1] for each in _RATIOS]
        ratio = _RATIOS[int(np.argmax(scores))]
        unseen = unseen + np.float32(ratio) * by_words
    calibration = calibrate(task, unseen, Labels(values=values, present=np.ones(len(values), dtype=np.bool_)))
    return Recipe(ratio=ratio, scale=calibration.scale, shift=calibration.shift)


def _out_of_fold(
    models: Sequence[_Model], features: csr_matrix | NDArray[np.float32], folds: NDArray[np.int64], *, width: int
) -> NDArray[np.float32]:
    """Decisions float32 [rows, columns], each from the model that did not see the row's fold."""
    decisions = np.zeros((len(folds), width), dtype=np.float32)
    for fold, (weights, biases) in enumerate(models[1:]):
        held = folds == fold
        decisions[held] = features[held] @ weights.T.astype(features.dtype) + biases
    return decisions


def importance(models: LinearModels, tasks: Sequence[Task], tokens: Tokens) -> NDArray[np.float64]:
    """How much each row of the table moves the decisions of all tasks: float64 [rows], each task by its share."""
    scale = _column_scale(models, tasks, tokens)
    mass = np.bincount(tokens.ids, weights=tokens.weights.astype(np.float64) ** 2, minlength=models.weights.shape[2])
    moved = np.zeros(models.weights.shape[2])
    for weights, factor in zip(models.weights[0], scale, strict=True):
        moved += (weights.astype(np.float64) * factor) ** 2
    return mass * moved


def factored(models: LinearModels, tasks: Sequence[Task], tokens: Tokens, *, width: int) -> Start:
    """The copy of rank `width` that loses the least of the decisions on the training rows."""
    scale = _column_scale(models, tasks, tokens).astype(np.float32)
    decisions = _decisions(models.weights[0], tokens) * scale  # [sample, K]
    sizes, directions = np.linalg.eigh((decisions.T @ decisions / len(decisions)).astype(np.float64))
    sizes, directions = sizes[::-1][:width], directions[:, ::-1][:, :width]
    # A direction of the table and one of the heads may trade a factor. All get the same rounding error, which is least in
    # sum when each is made smaller by the root of its size. Source: the dual of reverse water-filling, Cover & Thomas, ch. 10.
    traded = np.maximum(sizes, sizes[0] * _SIZE_SHARE_MIN + _SIZE_MIN) ** -_TRADED
    # Fewer columns than directions: the others stay empty.
    empty = ((0, 0), (0, width - len(sizes)))
    reading, read = np.pad(directions * traded, empty), np.pad(directions / traded, empty)  # [K, D]
    turned = _rotation(width)
    reading, read = (reading @ turned).astype(np.float32), (read @ turned).astype(np.float32)
    # The deep part wants inputs of unit size.
    size = np.sqrt(((decisions @ reading) ** 2).mean()).item() or 1.0
    scaled = scale[:, None] * reading / np.float32(size)  # [K, D]
    tables = np.stack([weights.T.astype(np.float32) @ scaled for weights in models.weights])  # [1 + folds, rows, D]
    return Start(
        table=tables[0],
        fold_tables=tables[1:],
        head_weight=(read / scale[:, None] * size).astype(np.float32),
        head_bias=models.biases[0],
        directions=scaled,
    )


def _rotation(width: int) -> NDArray[np.float32]:
    """A random orthogonal matrix [width, width].

    The first directions are far larger than the last. Turned, all numbers of a row are of one size, and four bits hold them:
    on `valid`, four bits cost `group` .047 without and .001 with it. Source: Ashkboos et al., arXiv:2404.00456.
    """
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    return turned.astype(np.float32)


def _column_scale(models: LinearModels, tasks: Sequence[Task], tokens: Tokens) -> NDArray[np.float64]:
    """Factors [K] that give each task the share of the decisions' variance that its weight and labels deserve.

    Within a task columns that vary little, those of rare labels, are made larger: of 18 languages, two are most of the variance,
    and without this the directions left are theirs.
    """
    variance = np.maximum(_decisions(models.weights[0], tokens).astype(np.float64).var(axis=0), _SIZE_MIN)
    scale, first = np.ones(len(variance)), 0
    for task in tasks:
        place = slice(first, first + task.width)
        first += task.width
        share = task.entry.start_share * task.width**_SHARE_EXPONENT
        # A regression's value and its bands differ in kind, not in how rare they are.
        evened = 1.0 if task.entry.kind == "regression" else _EVENED
        scale[place] = np.sqrt(share * variance[place] ** -evened / (variance[place] ** (1 - evened)).sum())
    return scale


def _decisions(weights: NDArray[np.float16], tokens: Tokens) -> NDArray[np.float32]:
    """X·C for every `step`th row: float32 [sample, K]. A sample, because all rows by all columns is a gigabyte."""
    matrix = text_matrix(tokens, table_rows=weights.shape[1], hidden=None)
    step = max(1, matrix.shape[0] // _SAMPLE_ROWS)
    sample: NDArray[np.float32] = matrix[::step].astype(np.float32) @ np.ascontiguousarray(weights.T.astype(np.float32))
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


def _svm(task: Task, matrix: csr_matrix, values: NDArray[Any]) -> _Model:
    """One SVM a column, a ridge for a regression; a label that no row has stays 0."""
    weights = np.zeros((task.width, matrix.shape[1]), dtype=np.float32)
    biases = np.zeros(task.width, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be an optimum
        if task.entry.kind == "regression":
            ridge = Ridge(alpha=task.entry.start_alpha, solver="sparse_cg", tol=1e-3).fit(matrix, values)
            weights[0], biases[0] = ridge.coef_, float(ridge.intercept_)
        for column, is_label in _binary_problems(task, values):
            if _POSITIVE_ROWS_MIN <= is_label.sum() < len(is_label):
                model = LinearSVC(C=task.entry.start_c, max_iter=_ITERATIONS_MAX, random_state=0).fit(matrix, is_label)
                weights[column], biases[column] = model.coef_[0], model.intercept_.item()
    if task.edges:  # the value's column is not in margins, so those of its bands become logits here
        weights[1:] *= _BAND_LOGITS_PER_MARGIN
        biases[1:] *= _BAND_LOGITS_PER_MARGIN
    return weights, biases


def _binary_problems(task: Task, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each column that an SVM is for, and the rows that are its label."""
    if task.entry.kind == "multi":
        yield from ((column, values[:, column] > 0.5) for column in range(task.width))
        return
    if task.entry.kind == "regression":
        values = 1 + np.searchsorted(np.asarray(task.edges, dtype=np.float32), values, side="right")
    for column in range(1 if task.entry.kind == "regression" else 0, task.width):
        yield column, values == column


def _words_model(task: Task, meanings: NDArray[np.float32], values: NDArray[Any]) -> _Model:
    """A regression, logistic but for numbers, over meanings [rows, W], by L-BFGS with a penalty on standardised inputs."""
    middle, spread = meanings.mean(axis=0), meanings.std(axis=0) + np.float32(1e-6)
    inputs, truth = torch.from_numpy((meanings - middle) / spread), torch.from_numpy(values)
    weights = torch.zeros(task.width, inputs.shape[1], requires_grad=True)
    biases = torch.zeros(task.width, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, biases], max_iter=_WORDS_ITERATIONS, history_size=8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        outputs = inputs @ weights.T + biases  # [rows, columns]
        if task.entry.kind == "multi":
            value = functional.binary_cross_entropy_with_logits(outputs, truth, reduction="none").sum(dim=1).mean()
        elif task.entry.kind == "regression":
            value = functional.mse_loss(outputs[:, 0], truth)
            if task.edges:
                bands = torch.bucketize(truth, torch.tensor(task.edges), right=True)
                value = value + functional.cross_entropy(outputs[:, 1:], bands)
        else:
            value = functional.cross_entropy(outputs, truth)
        value = value + _WORDS_PENALTY * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    scaled = weights.detach().numpy() / spread
    return scaled, biases.detach().numpy() - scaled @ middle
