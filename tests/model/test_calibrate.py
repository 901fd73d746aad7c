"""Calibration and metrics: that the numbers mean what their names say."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from torch.nn import functional  # noqa: E402 - after the check that torch is there

from model import metrics  # noqa: E402
from model.calibrate import bent, beside_own, beside_rivals, calibrate, in_its_band  # noqa: E402
from model.dataset import Labels  # noqa: E402
from model.evaluate import _regression  # noqa: E402
from model.tasks import Task, TaskEntry  # noqa: E402

pytestmark = pytest.mark.torch

RANDOM = np.random.default_rng(5)


def a_task(kind: str, *labels: str, **values: Any) -> Task:
    entry = TaskEntry.model_validate({"name": "t", "kind": kind, "sets": ["shop"], "field": "x"} | values)
    return Task(entry=entry, labels=labels)


def all_present(values: Any) -> Labels:
    return Labels(values=values, present=np.ones(len(values), dtype=np.bool_))


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def softmax(logits: Any) -> Any:
    each = np.exp(logits - logits.max(axis=1, keepdims=True))
    return each / each.sum(axis=1, keepdims=True)


def test_boastful_probabilities_are_brought_down_to_earth() -> None:
    """Logits three times too large get a scale of about a third, and the calibration error nearly vanishes."""
    honest = RANDOM.normal(size=(4000, 3)) * 1.5
    truth = np.array([RANDOM.choice(3, p=p) for p in softmax(honest)])
    boastful = (honest * 3).astype(np.float32)
    scale = calibrate(a_task("single", "a", "b", "c"), boastful, all_present(truth)).scale
    assert scale == pytest.approx(1 / 3, rel=0.15)
    before = metrics.single_label(softmax(boastful), truth)
    after = metrics.single_label(softmax(boastful * scale), truth)
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < 0.03 < before["ece"]


def test_rows_that_look_certain_are_doubted_where_labels_are_a_convention() -> None:
    """Where a fifth of all labels is drawn by lot, no single temperature is honest; the bend is, and no answer changes."""
    sure = RANDOM.exponential(scale=3.0, size=(6000, 1)) * np.eye(4)[RANDOM.integers(4, size=6000)]
    logits = (sure + RANDOM.normal(size=(6000, 4)) * 0.3).astype(np.float32)
    truth = np.array([RANDOM.choice(4, p=p) for p in softmax(logits)])
    by_lot = RANDOM.random(6000) < 0.2
    truth[by_lot] = RANDOM.integers(4, size=int(by_lot.sum()))
    found = calibrate(a_task("single", "a", "b", "c", "d"), logits[:3000], all_present(truth[:3000]))
    scores = logits[3000:] * np.float32(found.scale)
    straight = metrics.single_label(softmax(scores), truth[3000:])
    after = metrics.single_label(softmax(bent(torch.from_numpy(scores), torch.tensor(found.bend)).numpy()), truth[3000:])
    assert after["accuracy"] == straight["accuracy"]
    assert after["ece"] < 0.035 < 0.05 < straight["ece"]


def test_the_interval_holds_four_of_five_values() -> None:
    """On noisy numbers the interval covers 80 %, the value is the middle, and bold predictions are shrunk."""
    signal, noise = RANDOM.normal(size=2000), RANDOM.exponential(size=2000)
    values = (5 + 0.5 * signal + noise).astype(np.float32)
    found = calibrate(a_task("regression"), signal[:, None].astype(np.float32), all_present(values))
    centre = signal * found.scale
    assert found.scale == pytest.approx(0.5, abs=0.1)
    assert found.low < found.shift < found.high
    assert ((centre + found.low <= values) & (values <= centre + found.high)).mean() == pytest.approx(0.8, abs=0.01)
    assert (values > centre + found.shift).mean() == pytest.approx(0.5, abs=0.01)


def test_labels_of_which_each_row_has_one_are_surer_beside_unlikely_ones() -> None:
    """Scores of labels drawn one a row: honest only once each row's are moved together; their order stays."""
    random = np.random.default_rng(7)
    scores = (random.normal(size=(6000, 8)) * random.uniform(0.5, 3, size=(6000, 1)) - 2).astype(np.float32)
    truth = np.eye(8, dtype=np.float32)[[random.choice(8, p=p) for p in softmax(scores)]]
    labels = [f"label {place}" for place in range(8)]
    found = calibrate(a_task("multi", *labels), scores[:3000], all_present(truth[:3000]))
    apart = torch.from_numpy(scores[3000:] * np.float32(found.scale) + np.float32(found.shift))
    moved = beside_own(apart, torch.tensor(found.rivals))
    np.testing.assert_array_equal(apart.argsort(dim=1), moved.argsort(dim=1))
    before, after = (functional.binary_cross_entropy_with_logits(each, torch.from_numpy(truth[3000:])) for each in (apart, moved))
    assert after < 0.97 * before


def test_several_tasks_at_once_are_each_beside_their_own_labels() -> None:
    """As the graph does it: the same as one after the other."""
    scores = torch.from_numpy(np.random.default_rng(8).normal(size=(50, 7)).astype(np.float32))
    rivals = torch.tensor([[0.4, -0.3, -0.3], [0.8, 0.1, 0.2]])
    task_of = torch.eye(2)[[0, 0, 0, 1, 1, 1, 1]]
    apart = [beside_own(part, own) for part, own in zip(torch.split(scores, [3, 4], dim=1), rivals, strict=True)]
    np.testing.assert_allclose(beside_rivals(scores, rivals, task_of), torch.cat(apart, dim=1), atol=1e-5)


def test_without_a_likely_label_the_sums_stay_finite() -> None:
    """Scores far below what single precision can exponentiate, and far above."""
    scores = torch.tensor([[-300.0, -310.0], [300.0, 0.0]])
    assert torch.isfinite(beside_own(scores, torch.tensor([0.5, -0.3, -0.3]))).all()


def test_at_its_threshold_every_label_is_as_probable_as_the_others_at_theirs() -> None:
    """A label that is rarer than its probabilities say gets a higher threshold; one of a single row has nearly everyone's."""
    rows = 6000
    logits = RANDOM.normal(size=(rows, 3)).astype(np.float32) * 2
    truth = (RANDOM.random((rows, 3)) < sigmoid(logits - [0.0, 1.0, 0.0])).astype(np.float32)
    logits[:, 2], truth[:, 2] = -7.0, 0
    truth[0, 2] = 1
    found = calibrate(a_task("multi", "right", "too bold", "rare"), logits, all_present(truth))
    odds = np.log(np.array(found.thresholds) / (1 - np.array(found.thresholds)))
    bare = (odds - found.shift) / found.scale
    assert bare[1] - bare[0] == pytest.approx(1.0, abs=0.2)
    assert np.mean(found.thresholds[:2]) == pytest.approx(found.thresholds[2], abs=0.15)


def test_thresholds_do_better_on_new_rows_than_each_labels_own_best_ones() -> None:
    """With many labels and few rows of each, what is best for the rows at hand is not for others."""
    logits = (RANDOM.normal(size=(8000, 60)) - 3).astype(np.float32)
    truth = (RANDOM.random(logits.shape) < sigmoid(logits)).astype(np.float32)
    few, others = slice(0, 400), slice(400, None)
    labels = [f"label {place}" for place in range(60)]
    found = calibrate(a_task("multi", *labels), logits[few], all_present(truth[few]))
    steps = np.linspace(0.05, 0.85, 60)
    own = [
        max(steps, key=lambda step, at=at: metrics.micro_f1(sigmoid(logits[few, at]) >= step, truth[few, at] > 0.5))
        for at in range(60)
    ]
    ours = sigmoid(logits[others] * found.scale + found.shift) >= found.thresholds
    assert (
        metrics.micro_f1(ours, truth[others] > 0.5) > metrics.micro_f1(sigmoid(logits[others]) >= own, truth[others] > 0.5) + 0.01
    )


def test_a_task_without_validation_rows_is_left_as_it_is() -> None:
    """Nothing to learn from is no error."""
    nobody = Labels(values=np.zeros((4, 2), np.float32), present=np.zeros(4, np.bool_))
    found = calibrate(a_task("multi", "a", "b"), np.zeros((4, 2), np.float32), nobody)
    assert (found.scale, found.shift, found.thresholds) == (1.0, 0.0, (0.5, 0.5))


def test_metrics_of_a_small_example_are_those_counted_by_hand() -> None:
    """Accuracy, top-5, F1, errors and majorities of rows one can count."""
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    truth = np.array([0, 1, 1, 1])
    single = metrics.single_label(probabilities, truth)
    assert single["accuracy"] == 0.75
    assert single["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert single["top_5"] == 1.0
    assert metrics.majority_accuracy(truth) == 0.75

    several = np.array([[1, 0], [1, 1], [0, 0], [1, 1]], dtype=np.float32)
    assert metrics.multi_label(probabilities, several, (0.5, 0.5))["micro_f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert metrics.majority_micro_f1(several) == pytest.approx(2 * 5 / (8 + 5))

    numbers = np.array([[1.0, 0.0, 2.0], [2.0, 1.0, 3.0], [3.0, 2.0, 9.0]], dtype=np.float32)
    regression = metrics.regression(numbers, np.array([1.0, 4.0, 8.0]))
    assert regression["mae"] == pytest.approx(7 / 3)
    assert regression["spearman"] == pytest.approx(1.0)
    assert regression["coverage"] == pytest.approx(2 / 3)
    assert metrics.in_bands(np.array([1.0, 2.0, 5.0]), [2, 4]).tolist() == [0, 1, 2]


def test_a_value_moves_as_little_as_puts_it_into_its_most_probable_band() -> None:
    """Inside it stays, outside it goes just past the edge; the outermost bands have no end."""
    edges = (10.0, 20.0)
    values = torch.tensor([15.0, 5.0, 25.0, 3.0, 1000.0, 12.0])
    best = torch.tensor([1, 1, 1, 0, 2, 2])
    bands = 2 * torch.nn.functional.one_hot(best, 3).float()
    moved = in_its_band(values, bands, edges).numpy()
    np.testing.assert_allclose(moved, [15, 10, 20, 3, 1000, 20], atol=0.01)
    np.testing.assert_array_equal(metrics.in_bands(moved, edges), best.numpy())
    tied = torch.tensor([[1.0, 1.0, -3.0], [1.001, 1.0, -3.0]])
    between = in_its_band(torch.tensor([13.0, 13.0]), tied, edges).numpy()
    np.testing.assert_allclose(between, [11.5, 11.5], atol=0.05)


def test_a_book_on_an_edge_counts_in_the_band_above() -> None:
    """Its label is a logarithm in float32, whose exponential may be a hair below the edge."""
    task = Task(
        entry=TaskEntry(name="pages", kind="regression", sets=("shop",), field="pages", scale="log", value_bands=(179, 343))
    )
    pages = np.array([179.0, 343.0, 178.0])
    found = _regression(
        task, np.repeat([[180.0], [350.0], [100.0]], 3, axis=1).astype(np.float32), np.log(pages).astype(np.float32)
    )
    assert found.metrics["band_accuracy"] == 1.0


def test_variance_explained_is_that_after_the_best_slope() -> None:
    """Calibration gives slope and shift; a slope below 0 it does not give."""
    truth = np.arange(10, dtype=np.float32)
    assert metrics.score("regression", truth[:, None] * 3 + 7, truth)[1] == pytest.approx(1)
    assert metrics.score("regression", -truth[:, None], truth)[1] == 0
    assert metrics.score("regression", np.ones((10, 1), dtype=np.float32), truth)[1] == 0
