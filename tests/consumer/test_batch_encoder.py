"""A batch's texts are, listing by listing, those that one answer after the other would have."""

import string
from collections.abc import Mapping
from itertools import chain

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumer.batch_encoder import NOT_ASKED, BatchEncoder, Said
from consumer.predictions import Predictions
from consumer.task_prediction import CONFIDENCE_STEPS, Label, TaskPrediction
from model.bundle import TaskSpec

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=5)
VALUES = st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 3)
RANKED = st.lists(st.tuples(st.integers(0, 400), st.integers(0, CONFIDENCE_STEPS)), max_size=6)


@st.composite
def tasks(draw: st.DrawFn) -> list[TaskSpec]:
    """Up to five tasks, each with up to 300 labels or a regression."""
    found = []
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        if draw(st.booleans()):
            found.append(TaskSpec(name=name, kind="regression"))
        else:
            labels = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
            labels += [f"label {number}" for number in range(draw(st.sampled_from([0, 3, 300])))]
            found.append(TaskSpec(name=name, kind="single", labels=tuple(dict.fromkeys(labels))))
    return found


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[TaskSpec], Said, list[Mapping[str, TaskPrediction]]]:
    """A batch in numbers, and what it says listing by listing."""
    asked = draw(tasks())
    regressions = [task for task in asked if task.kind == "regression"]
    counts, ranked, values, expected = [], [], [], []
    for _ in range(draw(st.integers(0, 4))):
        said: dict[str, TaskPrediction] = {}
        row, numbers = [], []
        for task in asked:
            given_ = draw(st.booleans())
            if task.kind == "regression":
                numbers.append(draw(VALUES))
                if given_:
                    rounded = np.array(numbers[-1], np.float32).astype(np.float64).round(4).tolist()
                    said[task.name] = TaskPrediction.regression(*rounded)
                row.append(0 if given_ else NOT_ASKED)
                continue
            found = [(label % len(task.labels), step) for label, step in draw(RANKED)] if given_ else []
            if given_:
                labels = [Label(task.labels[label], step / CONFIDENCE_STEPS) for label, step in found]
                said[task.name] = TaskPrediction.classification(labels)
            ranked += found
            row.append(min(len(found), len(task.labels)) if given_ else NOT_ASKED)
            if given_ and len(found) > len(task.labels):  # a task gives no more labels than it has
                del ranked[len(ranked) - len(found) + len(task.labels) :]
                said[task.name] = TaskPrediction.classification(labels[: len(task.labels)])
        counts.append(row)
        values.append(numbers)
        expected.append(said)
    numbers = Said(
        np.array(counts, dtype=np.int64).reshape(len(counts), len(asked)),
        np.array([label for label, _ in ranked], dtype=np.int64),
        np.array([step for _, step in ranked], dtype=np.int64),
        np.array(values, dtype=np.float32).reshape(len(counts), len(regressions), 3),
    )
    return asked, numbers, expected


def texts(one: Predictions) -> tuple[int, bytes, bytes]:
    return one.count, one.avro, one.fields


@settings(deadline=None)
@given(batch=batches())
def test_a_batch_is_written_as_each_of_its_listings_would_be(
    batch: tuple[list[TaskSpec], Said, list[Mapping[str, TaskPrediction]]],
) -> None:
    """JSON and Avro, byte for byte, for any tasks and labels; the answers read from it are those that were given."""
    asked, said, expected = batch
    found = BatchEncoder(asked).encode(said)
    assert [texts(one) for one in found] == [texts(Predictions.of(one)) for one in expected]
    assert found == expected


@settings(deadline=None)
@given(batch=batches())
def test_the_compact_form_stands_for_the_same_answers(
    batch: tuple[list[TaskSpec], Said, list[Mapping[str, TaskPrediction]]],
) -> None:
    """What was encoded is recalled byte for byte, also among forms that stand for nothing."""
    asked, said, _ = batch
    encoder = BatchEncoder(asked)
    found = encoder.encode(said)
    forms = list(chain.from_iterable((b"", one.compact, b"broken", b"AAAABBBB") for one in found))
    recalled = encoder.recall(forms)
    assert [texts(one) for one in recalled if one is not None] == [texts(one) for one in found]
    assert [place for place, one in enumerate(recalled) if one is not None] == list(range(1, len(forms), 4))
    assert all(one.recalled and one.compact == was.compact for one, was in zip(recalled[1::4], found, strict=True) if one)


def test_a_form_that_other_labels_made_stands_for_nothing() -> None:
    """A model that was exchanged under the same epoch must not answer with its own labels what another one said."""
    said = Said(np.array([[1]]), np.array([0]), np.array([9000]), np.zeros((1, 0, 3), np.float32))
    form = BatchEncoder([TaskSpec(name="genre", kind="single", labels=("x", "y"))]).encode(said)[0].compact
    assert BatchEncoder([TaskSpec(name="genre", kind="single", labels=("y", "x"))]).recall([form]) == [None]


@settings(deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@example(at=26, byte=ord("N"))  # the last letter before the padding, in bits that stand for nothing
def test_a_form_that_was_damaged_stands_for_nothing(at: int, byte: int) -> None:
    """One byte that is another one is found out."""
    encoder = BatchEncoder([TaskSpec(name="genre", kind="single", labels=tuple("abcdef"))])
    said = Said(np.array([[5]]), np.arange(5), np.arange(9000, 9005), np.zeros((1, 0, 3), np.float32))
    form = encoder.encode(said)[0].compact
    damaged = bytearray(form)
    damaged[at % len(form)] = byte
    (found,) = encoder.recall([bytes(damaged)])
    assert (found is None) == (bytes(damaged) != form)


def test_a_text_longer_than_the_table_of_heads() -> None:
    """A task with many labels fits, too."""
    names = tuple(f"label {number} {'x' * 90}" for number in range(200))
    said = Said(np.array([[200]]), np.arange(200), np.full(200, 5000), np.zeros((1, 0, 3), np.float32))
    found = BatchEncoder([TaskSpec(name="topics", kind="multi", labels=names, thresholds=(0.5,) * 200)]).encode(said)[0]
    assert found == {"topics": TaskPrediction.classification([Label(name, 0.5) for name in names])}
    assert len(found.fields) > 4096
