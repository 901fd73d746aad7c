"""Soft targets: from models that did not see the row, as sure as they are right."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from model.listing import Listing
from model.tasks import Task, TaskEntry

pytest.importorskip("torch", reason="the train extra is not installed")

from model.teacher import folds_by_title, out_of_fold, soft_targets

SUBJECT = Task(entry=TaskEntry(name="subject", kind="single", sets=("shop",), field="category"), labels=("a", "b"))
THEMES = Task(entry=TaskEntry(name="themes", kind="multi", sets=("shop",), field="tags"), labels=("x", "y", "z"))


def test_editions_of_one_title_share_a_fold() -> None:
    """Case, order and punctuation do not matter, and all folds are used."""
    listings = [Listing(listing_id=str(n), title=f"Volume {n}") for n in range(300)]
    folds = folds_by_title(listings, folds=3)
    again = folds_by_title([Listing(listing_id="other", title=f"volume, {n}!") for n in range(300)], folds=3)
    np.testing.assert_array_equal(folds, again)
    assert np.bincount(folds).min() > 60


def test_a_row_is_never_judged_by_a_model_that_saw_it() -> None:
    """Each fold's decisions come from a fit on exactly the other rows."""
    rows = np.arange(9)
    matrix = csr_matrix(np.ones((9, 1)))

    def fit(task: Task, some: csr_matrix, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The bias tells which rows were seen: the sum of their values.
        assert some.shape[0] == len(values) == 6
        return np.zeros((task.width, 1), dtype=np.float32), np.full(task.width, values.sum(), dtype=np.float32)

    decisions = out_of_fold(SUBJECT, matrix, rows, folds=rows % 3, fit=fit)
    np.testing.assert_array_equal(decisions[:, 0], [rows.sum() - rows[rows % 3 == n % 3].sum() for n in range(9)])


def test_what_is_taught_is_as_sure_as_it_is_right() -> None:
    """Margins that are right nine times in ten become probabilities of about .9, however large the margins are."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 5000)
    right = random.random(5000) < 0.9
    for size in (0.2, 3.0):
        margins = np.zeros((5000, 2), dtype=np.float32)
        margins[np.arange(5000), np.where(right, truth, 1 - truth)] = size
        answers, _ = soft_targets(SUBJECT, margins, truth)
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=2e-3)
        assert answers.max(axis=1).mean() == pytest.approx(0.9, abs=0.02)


def test_labels_of_a_multi_task_are_taught_apart() -> None:
    """A label's probability depends on its own margin alone."""
    random = np.random.default_rng(0)
    values = (random.random((4000, 3)) < 0.3).astype(np.float32)
    margins = (values * 2 - 1 + random.normal(0, 1, values.shape)).astype(np.float32)
    answers, _ = soft_targets(THEMES, margins, values)
    assert answers[values > 0.5].mean() > 0.6
    assert answers.mean() == pytest.approx(0.3, abs=0.02)
