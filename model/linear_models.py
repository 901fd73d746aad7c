"""Linear models of all tasks: what the network starts from.

A task's linear model is the sum of three: an SVM over the n-grams; one over the n-grams scaled by what each says about the label,
as naive Bayes would have it; and a regression over the sum of the words' vectors (word_vectors.py), which generalises where the
others remember. All are linear in the n-grams, so one row of coefficients for each n-gram holds their sum. Where a language model
teaches a task, what it taught joins them (text_student.py).

The models have seen the labels of the rows that the network is trained on next, whose decisions are therefore too good to
learn from. So each model is fitted once more for each fold, without the fold's rows, and a training row is read through the
models of its own fold. Serving reads through those of all rows.
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
from model.calibrate import scale_and_shift
from model.checkpoint import Checkpoints
from model.dataset import Labels
from model.features import Tokens
from model.minimise import minimise
from model.tasks import Task
from model.text_matrix import text_matrix

# A margin of 1 is near certainty for an SVM and near nothing for a softmax.
_LOGITS_PER_MARGIN = {"single": 4.0, "ordinal": 4.0, "multi": 2.5}
_BAND_LOGITS_PER_MARGIN = 4.0
_ITERATIONS_MAX = 60
# Of 0.5, 0.75 and 1 for the power; a task's score on `valid` differs by less than .002 between them.
_EVIDENCE_POWER = 0.75
_EVIDENCE_PRIOR = 0.3  # a term's usual weight in a row
# A binary problem with fewer positive rows than this tells nothing.
_POSITIVE_ROWS_MIN = 2
# How much of the words' model joins the SVM's margins: what scores best on rows that neither has seen.
_RATIOS = (0.0, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)
_WORDS_PENALTY = 3e-2
_WORDS_ITERATIONS = 50
_PARALLEL_ROWS_MIN = 5_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task's model is (SVMs + ratio * words' model) * scale + shift."""

    ratio: float
    scale: float
    shift: float


@dataclass(frozen=True, slots=True)
class LinearModels:
    """Linear models of all tasks side by side, as logits: first those of all rows, then those without each fold.

    Attributes:
        weights: float16 [1 + folds, K, table rows]; biases: float32 [1 + folds, K].
        svm_weights: float16 [K, table rows], svm_biases: float32 [K]: the plain SVMs of all rows alone, as logits.
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

    def joined(self, columns: NDArray[np.int64], weights: NDArray[np.float32], biases: NDArray[np.float32]) -> "LinearModels":
        """The same models, in all folds of which these columns' logits have others added, float32 [columns, table rows]."""
        every, all_biases = self.weights.copy(), self.biases.copy()
        every[:, columns] = (every[:, columns].astype(np.float32) + weights).astype(np.float16)
        all_biases[:, columns] += biases
        return dataclasses.replace(self, weights=every, biases=all_biases)


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
        known = None if recipe is None else astuple(recipe)
        depends_on = {"entry": _identity(task), "labels": task.labels, "recipe": known, "evidence": _EVIDENCE_POWER}
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
    return task.entry.model_dump(
        mode="json", exclude={"weight", "start_share", "shapes_representation", "leans_on", "top_k", "taught_share", "broad"}
    )


# Weights [columns, features] and biases [columns].
_Model = tuple[NDArray[np.float32], NDArray[np.float32]]


def _task_models(
    task: Task, matrix: csr_matrix, values: NDArray[Any], folds: NDArray[np.int64], *,
    vectors: NDArray[np.float32] | None, recipe: Recipe | None,
) -> dict[str, Any]:  # fmt: skip
    """A task's models as logits: weights [1 + folds, columns, table rows] and biases, the plain SVM's alone, and the recipe."""
    inside = [np.ones(len(folds), dtype=np.bool_)]
    if recipe is None:
        inside += [folds != fold for fold in range(int(folds.max()) + 1)]
    # Processes, since liblinear's random numbers are global.
    jobs = min(len(inside), os.cpu_count() or 1) if len(values) >= _PARALLEL_ROWS_MIN else 1
    fitted = Parallel(n_jobs=jobs)(delayed(_svms)(task, matrix[rows], values[rows]) for rows in inside)
    plain: _Model = fitted[0][0]
    svms: list[_Model] = [both for _, both in fitted]
    words: list[_Model] = []
    meanings = np.zeros((0, 0), dtype=np.float32)
    if vectors is not None:
        meanings = np.asarray(matrix.astype(np.float32) @ vectors, dtype=np.float32)  # [rows, W]
        words = [_words_model(task, meanings[rows], values[rows]) for rows in inside]
    if recipe is None:
        unseen = _out_of_fold(svms, matrix, folds, width=task.width)
        recipe = _recipe(task, values, unseen, _out_of_fold(words, meanings, folds, width=task.width) if words else None)
    ratio, scale, shift = (np.float32(each) for each in astuple(recipe))
    models = svms
    if vectors is not None:
        pairs = zip(svms, words, strict=True)
        models = [(svm[0] + ratio * (word[0] @ vectors.T), svm[1] + ratio * word[1]) for svm, word in pairs]
    margin = _margin(task)
    return {
        "weights": torch.from_numpy(np.stack([weights * scale for weights, _ in models]).astype(np.float16)),
        "biases": torch.from_numpy(np.stack([biases * scale + shift for _, biases in models])),
        "svm_weights": torch.from_numpy((plain[0] * margin).astype(np.float16)),
        "svm_biases": torch.from_numpy(plain[1] * margin),
        "recipe": list(astuple(recipe)),
    }


def _margin(task: Task) -> np.float32:
    return np.float32(_LOGITS_PER_MARGIN.get(task.entry.kind, 1.0))


def _recipe(task: Task, values: NDArray[Any], unseen: NDArray[np.float32], by_words: NDArray[np.float32] | None) -> Recipe:
    """Settled on decisions for rows that neither model saw: those of the SVMs and those of the words' model."""
    ratio = 0.0
    if by_words is not None:
        scores = [metrics.score(task.entry.kind, (unseen + each * by_words) * _margin(task), values)[1] for each in _RATIOS]
        ratio = _RATIOS[int(np.argmax(scores))]
        unseen = unseen + np.float32(ratio) * by_words
    scale, shift = scale_and_shift(task, unseen, values)
    return Recipe(ratio=ratio, scale=scale, shift=shift)


def _out_of_fold(
    models: Sequence[_Model], features: csr_matrix | NDArray[np.float32], folds: NDArray[np.int64], *, width: int
) -> NDArray[np.float32]:
    """Decisions float32 [rows, columns], each from the model that did not see the row's fold."""
    decisions = np.zeros((len(folds), width), dtype=np.float32)
    for fold, (weights, biases) in enumerate(models[1:]):
        held = folds == fold
        decisions[held] = features[held] @ weights.T.astype(features.dtype) + biases
    return decisions


def _svms(task: Task, matrix: csr_matrix, values: NDArray[Any]) -> tuple[_Model, _Model]:
    """One SVM a column, and the mean of it and of one over n-grams scaled by their evidence; a label that no row has stays 0.

    A regression's value has a ridge in place of both.
    """
    weights = np.zeros((2, task.width, matrix.shape[1]), dtype=np.float32)
    biases = np.zeros((2, task.width), dtype=np.float32)
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()  # float64 [features]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be an optimum
        if task.entry.kind == "regression":
            ridge = Ridge(alpha=task.entry.start_alpha, solver="sparse_cg", tol=1e-3).fit(matrix, values)
            weights[:, 0], biases[:, 0] = ridge.coef_, float(ridge.intercept_)
        for column, is_label in _binary_problems(task, values):
            if _POSITIVE_ROWS_MIN <= is_label.sum() < len(is_label):
                plain = LinearSVC(C=task.entry.start_c, max_iter=_ITERATIONS_MAX, random_state=0).fit(matrix, is_label)
                evidence = _evidence(matrix, is_label, squares)
                scaled = csr_matrix((matrix.data * evidence[matrix.indices], matrix.indices, matrix.indptr), shape=matrix.shape)
                by_evidence = LinearSVC(C=task.entry.start_c, max_iter=_ITERATIONS_MAX, random_state=0).fit(scaled, is_label)
                weights[:, column] = plain.coef_[0], (plain.coef_[0] + by_evidence.coef_[0] * evidence) / 2
                biases[:, column] = plain.intercept_.item(), (plain.intercept_ + by_evidence.intercept_).item() / 2
    if task.edges:  # the value's column is not in margins, so those of its bands become logits here
        weights[:, 1:] *= _BAND_LOGITS_PER_MARGIN
        biases[:, 1:] *= _BAND_LOGITS_PER_MARGIN
    return (weights[0], biases[0]), (weights[1], biases[1])


def _evidence(matrix: csr_matrix, is_label: NDArray[np.bool_], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each n-gram says about a label, float64 [features]: the size of naive Bayes' log-ratio, to a power.

    Scaled so that rows keep their mean squared length, and C its meaning.
    Source: Wang & Manning, ACL 2012, P12-2018.
    """
    shares = []
    for rows in (is_label, ~is_label):
        mass = np.asarray(matrix.T @ rows.astype(np.float64)) + _EVIDENCE_PRIOR
        shares.append(mass / mass.sum())
    evidence = np.abs(np.log(shares[0] / shares[1])) ** _EVIDENCE_POWER
    scale: NDArray[np.float64] = evidence / np.sqrt(squares @ evidence**2 / squares.sum())
    return scale


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

    def loss() -> torch.Tensor:
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
        return value + _WORDS_PENALTY * weights.square().sum()

    minimise([weights, biases], loss, iterations_max=_WORDS_ITERATIONS, history=8)
    scaled = weights.detach().numpy() / spread
    return scaled, biases.detach().numpy() - scaled @ middle
