"""Soft targets: what linear models say of training rows that they were not fitted on.

A label that a shop chose is one of several that would do, and a model fitted without the row often says which. Half of such
an answer in the target is worth two to three points of accuracy on `department` (Hinton et al. 2015, arXiv:1503.02531); it
hurts where labels are sharp, so each task says in `teacher_share` whether it wants any.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model.calibrate import Calibration, calibrate
from model.dataset import Labels
from model.listing import Listing
from model.tasks import Task, name_key

# Fits a task on some rows: matrix and values to weights [columns, table rows] and biases [columns].
Fit = Callable[[Task, csr_matrix, NDArray[np.generic]], tuple[NDArray[np.float32], NDArray[np.float32]]]


def folds_by_title(listings: Sequence[Listing], *, folds: int) -> NDArray[np.int64]:
    """The fold of each row: int64 [rows]. Editions of one title share a fold, as they share a part of the data."""
    titles = (name_key(listing.title or "") for listing in listings)
    digests = (hashlib.sha1(title.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest() for title in titles)
    return np.array([int.from_bytes(digest[:4], "big") % folds for digest in digests], dtype=np.int64)


def out_of_fold(
    task: Task, matrix: csr_matrix, values: NDArray[np.generic], *, folds: NDArray[np.int64], fit: Fit
) -> NDArray[np.float32]:
    """Decisions float32 [rows, columns], each from models that saw only the other folds."""
    decisions = np.zeros((len(values), task.width), dtype=np.float32)
    for fold in np.unique(folds):
        held = folds == fold
        weights, biases = fit(task, matrix[~held], values[~held])
        decisions[held] = matrix[held] @ weights.T.astype(np.float64) + biases
    return decisions


def soft_targets(
    task: Task, decisions: NDArray[np.float32], values: NDArray[np.generic]
) -> tuple[NDArray[np.float16], Calibration]:
    """The decisions as probabilities (or values) that are as sure as they are right, and the calibration that made them."""
    present = np.ones(len(values), dtype=np.bool_)
    calibration = calibrate(task, decisions, Labels(values=values, present=present))
    scores = decisions * calibration.scale + calibration.shift
    if task.entry.kind == "multi":
        scores = 1.0 / (1.0 + np.exp(-scores))
    elif task.entry.kind != "regression":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    return scores.astype(np.float16), calibration
