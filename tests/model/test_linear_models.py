"""Linear models of the tasks: each also without a part of the rows, over n-grams as they are, by evidence, and by meaning."""

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model.dataset import build_vocabulary, folds_by_beginning, folds_by_title
from model.features import FeatureExtractor, FeatureSettings
from model.listing import Listing
from model.tasks import Task, TaskEntry

pytest.importorskip("torch", reason="the train extra is not installed")

from model import linear_models
from model.word_vectors import word_vectors

SUBJECT = TaskEntry(name="subject", kind="single", sets=("shop",), field="category")
Model = tuple[NDArray[np.float32], NDArray[np.float32]]


def listings_of(titles: Iterable[str]) -> list[Listing]:
    return [Listing(listing_id="any", title=title) for title in titles]


def test_editions_of_one_title_share_a_fold() -> None:
    """Case, order and punctuation do not matter, and all folds are used."""
    folds = folds_by_title(listings_of(f"Volume {n}" for n in range(300)), folds=3)
    again = folds_by_title(listings_of(f"volume, {n}!" for n in range(300)), folds=3)
    np.testing.assert_array_equal(folds, again)
    assert np.bincount(folds).min() > 60


@pytest.mark.parametrize(
    "title",
    ["The Mirror of Literature, Amusement, and Instruction. Volume 13, No. {}", "Middlemarch (edition {})", "红楼梦：第{}册"],
)
def test_volumes_of_a_work_share_a_fold_by_beginning(title: str) -> None:
    """What is kept out must not be known by the volume before."""
    assert len(set(folds_by_beginning(listings_of(title.format(n) for n in range(50)), folds=3).tolist())) == 1


def test_titles_that_begin_otherwise_use_all_folds() -> None:
    """One in brackets has no other beginning."""
    for title in ("{} volumes", "({})"):
        assert np.bincount(folds_by_beginning(listings_of(title.format(n) for n in range(300)), folds=3)).min() > 60


def test_a_row_is_never_judged_by_a_model_that_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decisions of each fold come from a fit on exactly the other rows, and so do the fold's own weights."""
    task = Task(entry=SUBJECT, labels=("a", "b"))
    values = np.arange(9) % 2
    seen: list[int] = []

    def fit(task: Task, matrix: csr_matrix, labels: NDArray[np.int64]) -> tuple[Model, Model]:
        seen.append(len(labels))
        # The first column of the matrix numbers the rows: a model's weight is the sum of those it saw.
        total = float(matrix[:, 0].sum())
        model = np.full((2, 2), total, dtype=np.float32), np.zeros(2, dtype=np.float32)
        return model, model

    monkeypatch.setattr(linear_models, "_svms", fit)
    matrix = csr_matrix(np.stack([np.arange(9.0), np.ones(9)], axis=1))
    state = linear_models._task_models(task, matrix, values, np.arange(9) % 3, vectors=None, recipe=None)
    assert seen == [9, 6, 6, 6]
    weights = state["weights"].numpy().astype(np.float64)[:, 0, 0]
    unseen = [36 - sum(n for n in range(9) if n % 3 == fold) for fold in range(3)]
    np.testing.assert_allclose(weights[1:] / weights[0], np.array(unseen) / 36, rtol=2e-3)


def told_and_untold() -> tuple[csr_matrix, NDArray[np.int64]]:
    """400 rows, a quarter with label 1. Column 0: common, a weak hint; column 1: rare and sure; 60 others say nothing."""
    random = np.random.default_rng(0)
    values = (np.arange(400) % 4 == 0).astype(np.int64)
    weak = random.random(400) < np.where(values, 0.6, 0.4)
    sure = (random.random(400) < 0.2) & (values == 1)
    silent = random.random((400, 60)) < 0.2
    return csr_matrix(np.column_stack([weak, sure, silent]).astype(np.float64) * 0.3), values


def test_evidence_is_what_tells_a_label_apart() -> None:
    """The sure n-gram says most, the weak one more than most of the silent ones; rows keep their mean squared length."""
    matrix, values = told_and_untold()
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    evidence = linear_models._evidence(matrix, values == 1, squares)
    assert evidence.argmax() == 1
    assert evidence[0] > np.median(evidence[2:])
    np.testing.assert_allclose(((matrix.toarray() * evidence) ** 2).sum(), squares.sum())


def test_a_rare_sure_ngram_weighs_more_by_evidence() -> None:
    """Beside the common weak one, in the mean of both SVMs as against the plain one."""
    matrix, values = told_and_untold()
    task = Task(entry=SUBJECT.model_copy(update={"start_c": 0.1}), labels=("a", "b"))
    plain, both = (weights[1] for weights, _ in linear_models._svms(task, matrix, values))
    assert both[1] / both[0] > 1.5 * plain[1] / plain[0] > 0


def test_words_have_the_vectors_of_what_they_mean() -> None:
    """Whole words and Chinese n-grams have one of length 1; near meanings are nearer than far ones; the rest have none."""
    settings = FeatureSettings()
    titles = ["Bread soup algebra", "soup bread algebra", "汤 面包 代数", "代数 汤 面包"]
    listings = [Listing(listing_id=str(n), title=title, publisher="Soup Press") for n, title in enumerate(titles)]
    vocabulary = build_vocabulary(listings * 2, settings)
    vectors = word_vectors(listings, vocabulary, settings, progress=lambda line: None)
    lengths = np.linalg.norm(vectors, axis=1)
    has_one = lengths > 0
    np.testing.assert_allclose(lengths[has_one], 1, atol=1e-3)

    def of(word: str) -> NDArray[np.float32]:
        tokens = FeatureExtractor(settings, vocabulary).tokens([Listing(listing_id="one", title=word)])
        return vectors[tokens.ids[has_one[tokens.ids]]].sum(axis=0)

    assert of("soup") @ of("bread") > of("soup") @ of("algebra")
    assert of("代数") @ of("algebra") / np.linalg.norm(of("代数")) > of("代数") @ of("bread") / np.linalg.norm(of("代数"))
    assert has_one.sum() == 3 + len({"汤", "面", "包", "面包", "代", "数", "代数"})
    assert not has_one[0]
