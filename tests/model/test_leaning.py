"""A task that leans on another: by how often their labels went together, and only as far as that helps."""

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the train extra is not installed")

import torch

from model.calibrate import beside_own
from model.dataset import Labels
from model.leaning import Leaning, calibrated
from model.tasks import Task, TaskEntry

TOPICS = tuple(f"topic {place}" for place in range(6))
GROUP = Task(entry=TaskEntry(name="group", kind="single", sets=("shop",), field="g", leans_on="topics"), labels=("a", "b", "c"))
THEMES = Task(entry=TaskEntry(name="topics", kind="multi", sets=("shop",), field="t"), labels=TOPICS)


def all_of(values: NDArray[np.generic]) -> Labels:
    return Labels(values=values, present=np.ones(len(values), dtype=np.bool_))


def a_part(*, rows: int, seed: int, telling: bool) -> tuple[list[Labels], dict[str, NDArray[np.float32]]]:
    """Books of one or two topics, two topics a group; logits say a little of the group and, where telling, much of the topics."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 3, rows)
    topics = np.zeros((rows, 6), dtype=np.float32)
    topics[np.arange(rows), group * 2 + random.integers(0, 2, rows)] = 1
    topics[np.arange(rows), group * 2 + random.integers(0, 2, rows)] = 1
    known = topics if telling else np.roll(topics, 1, axis=0)
    logits = {
        "group": (np.eye(3)[group] + random.normal(size=(rows, 3))).astype(np.float32),
        "topics": (known * 3 - 1.5 + random.normal(size=(rows, 6))).astype(np.float32),
    }
    return [all_of(group), all_of(topics)], logits


def right(group: NDArray[np.float32], labels: Labels) -> float:
    return float((group.argmax(axis=1) == labels.values).mean())


def before_and_after(*, telling: bool) -> tuple[float, float, Leaning]:
    """Shares of new rows whose group is right, by its own logits and leaning."""
    train, _ = a_part(rows=900, seed=1, telling=telling)
    calibrations, leanings = calibrated([GROUP, THEMES], train, *a_part(rows=600, seed=2, telling=telling))
    (truth, _), logits = a_part(rows=600, seed=3, telling=telling)
    other = calibrations["topics"]
    scores = torch.from_numpy(logits["topics"] * np.float32(other.scale) + np.float32(other.shift))
    said = leanings["group"].said(beside_own(scores, torch.tensor(other.rivals)).sigmoid()).numpy()
    return right(logits["group"], truth), right(logits["group"] + said, truth), leanings["group"]


def test_a_task_leans_on_one_that_knows_more() -> None:
    """On new rows far more answers are right; the shares are those of the training rows."""
    before, after, leaning = before_and_after(telling=True)
    assert after > before + 0.2
    np.testing.assert_allclose(leaning.shares, np.repeat(np.eye(3), 2, axis=0), atol=0.01)


def test_a_task_is_not_misled_by_one_that_knows_nothing() -> None:
    before, after, _ = before_and_after(telling=False)
    assert after > before - 0.01


def test_without_labels_to_settle_it_on_nothing_leans() -> None:
    """And without another task's labels in sight its probabilities tell nothing."""
    train, _ = a_part(rows=50, seed=1, telling=True)
    valid, logits = a_part(rows=40, seed=2, telling=True)
    valid[0] = Labels(values=valid[0].values, present=np.zeros(40, dtype=np.bool_))
    _, leanings = calibrated([GROUP, THEMES], train, valid, logits)
    assert leanings["group"].weight == 0
    silent = Leaning("topics", leanings["group"].shares, weight=1.0).said(torch.zeros(1, 6))
    assert (silent == silent[0, 0]).all()
