"""The table and the heads' start: the coefficients of the linear models of all tasks, factored.

X·C, the decisions of all tasks at once, is near X·(C·V)·Vᵀ, where V holds the leading principal directions of the decisions: C·V
is the table of embeddings that ships, and Vᵀ the heads that read it. Each fold's models make a table of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.features import Tokens
from model.linear_models import LinearModels
from model.tasks import Task
from model.text_matrix import text_matrix

# A task with many labels needs more directions; with an exponent of 1 every label would count alike.
_SHARE_EXPONENT = 0.75
# Of the differences between a task's columns in how much they vary; 1 would make them alike.
_EVENED = 0.25
# A direction's size to this power is what table and heads trade; 0 would leave it all to the table.
_TRADED = 0.25
_SIZE_SHARE_MIN = 1e-4  # of the largest direction's: what is next to nothing must not be blown up
_SIZE_MIN = 1e-12
_SAMPLE_ROWS = 30_000


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
