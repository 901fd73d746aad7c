"""The network's start: the linear models' coefficients, factored."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.dataset import build_vocabulary, folds_by_title, labels_of, read_rows
from model.features import FeatureExtractor, FeatureSettings, Tokens
from model.tasks import Task, TaskEntry, resolve

pytest.importorskip("torch", reason="the train extra is not installed")

from model import linear_start
from model.linear_models import LinearModels, linear_models
from model.linear_start import factored
from model.table import expanded, quantised
from model.text_matrix import text_matrix
from model.word_vectors import word_vectors

SUBJECT = TaskEntry(name="subject", kind="single", sets=("shop",), field="category")


def test_the_factors_give_back_the_decisions(shop: Path) -> None:
    """With as many directions as columns nothing is lost, for the table of all rows and for each fold's."""
    settings = FeatureSettings()
    rows = read_rows([shop], part="train", settings=settings)
    vocabulary = build_vocabulary(rows.listings, settings)
    tokens = FeatureExtractor(settings, vocabulary).tokens(rows.listings)
    task = resolve(SUBJECT, rows.by_set())
    vectors = word_vectors(rows.listings, vocabulary, settings, progress=lambda line: None)
    folds = folds_by_title(rows.listings, folds=2)
    models = linear_models(
        [task], [labels_of(task, rows)], tokens, vectors=vectors, table_rows=vocabulary.rows, folds=folds,
        progress=lambda line: None,
    )  # fmt: skip
    start = factored(models, [task], tokens, width=task.width)
    matrix = text_matrix(tokens, table_rows=vocabulary.rows, hidden=None)
    tables = [start.table, *start.fold_tables]
    assert len(tables) == len(models.weights) == 3
    for weights, table in zip(models.weights, tables, strict=True):
        np.testing.assert_allclose(matrix @ table @ start.head_weight.T, matrix @ weights.T.astype(np.float64), atol=0.02)


def rare_and_common(monkeypatch: pytest.MonkeyPatch, *, width: int, **constants: float) -> NDArray[np.float64]:
    """How well each of 16 labels' decisions, each half as large as the one before, survive table and rounding: correlations."""
    for name, value in constants.items():
        monkeypatch.setattr(linear_start, name, value)
    random = np.random.default_rng(3)
    rows, grams, labels = 400, 300, 16
    shape = (rows, 10)
    tokens = Tokens(
        ids=np.sort(random.integers(0, grams, shape)).ravel(), weights=np.ones(rows * 10, dtype=np.float32),
        families=np.zeros(rows * 10, dtype=np.int64), counts=np.full(rows, 10), words=np.zeros(rows, dtype=np.int64),
    )  # fmt: skip
    coefficients = random.normal(size=(labels, grams)) * 2.0 ** -np.arange(labels)[:, None] * 8
    models = LinearModels(
        weights=coefficients[None].astype(np.float16), biases=np.zeros((1, labels), dtype=np.float32),
        svm_weights=coefficients.astype(np.float16), svm_biases=np.zeros(labels, dtype=np.float32), recipes=(),
    )  # fmt: skip
    task = Task(entry=SUBJECT, labels=tuple(f"label {place}" for place in range(labels)))
    start = factored(models, [task], tokens, width=width)
    matrix = text_matrix(tokens, table_rows=grams, hidden=None)
    served = matrix @ expanded(*quantised(start.table)) @ start.head_weight.T
    wanted = matrix @ models.weights[0].T.astype(np.float64)
    return np.array([np.corrcoef(served[:, label], wanted[:, label])[0, 1] for label in range(labels)])


def test_rare_labels_keep_their_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are fewer directions than labels, those that vary little are not simply left out."""
    evened = rare_and_common(monkeypatch, width=8)
    plain = rare_and_common(monkeypatch, width=8, _EVENED=0.0)
    assert evened[:8].min() > 0.96
    assert (evened[4:8] > plain[4:8]).all()


def test_four_bits_are_shared_out_among_small_and_large_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With table and heads trading sizes, rounding leaves what is small readable."""
    traded = rare_and_common(monkeypatch, width=16)
    left = rare_and_common(monkeypatch, width=16, _TRADED=0.0)
    assert traded[:8].min() > 0.9
    assert (1 - traded[:10]).sum() < (1 - left[:10]).sum() / 2
