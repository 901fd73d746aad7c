"""What is not the bundle's model does not pass, and the report says which output and which rows."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from build_engine.errors import NotVerified
from build_engine.precision import Precision
from build_engine.verify import ROWS_MIN, Report, Rows, as_document, compare, outputs_of, verification_rows
from model.bundle import Bundle, Manifest, TaskSpec, TensorSpec
from model.features import Features, FeatureSettings

Outputs = dict[str, NDArray[np.float32]]
TASKS = (
    TaskSpec(name="subject", kind="single", labels=("A", "B", "C")),
    TaskSpec(name="themes", kind="multi", labels=("x", "y"), thresholds=(0.5, 0.2)),
    TaskSpec(name="pages", kind="regression"),
)
COUNT = 2_000


def a_manifest() -> Manifest:
    widths = {"subject": 3, "themes": 2, "pages": 3, "embedding": 4}
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", width)) for name, width in widths.items())
    settings = FeatureSettings()
    return Manifest(
        name="tiny", version="1", epoch=1, tasks=TASKS, features=settings, inputs=(), outputs=outputs, data_fingerprint=""
    )


def right() -> Outputs:
    random = np.random.default_rng(3)
    return {
        "subject": np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (COUNT, 1)),
        "themes": np.tile(np.array([[0.9, 0.1]], np.float32), (COUNT, 1)),
        "pages": np.tile(np.array([[300, 200, 500]], np.float32), (COUNT, 1)),
        "embedding": random.normal(size=(COUNT, 4)).astype(np.float32),
    }


def some_rows() -> Rows:
    empty = np.zeros((COUNT, 1))
    features = Features(empty.astype(np.int32), empty.astype(np.float32), empty.astype(np.uint8), empty.astype(np.float32))
    return Rows(features, tuple("empty text" if row % 2 else "mixed" for row in range(COUNT)))


def compared(found: Outputs, precision: Precision = "fp16") -> Report:
    return compare(a_manifest(), expected=right(), found=found, rows=some_rows(), precision=precision)


def failed(report: Report) -> list[str]:
    return [finding.output for finding in report.findings if not finding.passed]


def test_equal_outputs_pass() -> None:
    report = compared(right())
    assert report.passed
    report.require()
    assert all(not finding.bad_rows for finding in report.findings)


@pytest.mark.parametrize(("precision", "inside", "outside"), [("fp16", 0.009, 0.011), ("fp32", 0.9e-4, 1.1e-4)])
def test_a_probability_may_differ_by_the_precisions_limit_and_no_more(
    precision: Precision, inside: float, outside: float
) -> None:
    for difference, expected in ((inside, []), (outside, ["themes"])):
        found = right()
        found["themes"][17, 0] -= difference
        assert failed(compared(found, precision)) == expected


def test_two_other_best_labels_in_two_thousand_rows_pass_and_three_do_not() -> None:
    expected, found = right(), right()
    near = np.array([0.4, 0.401, 0.199], np.float32)
    for rows, outcome in ((2, []), (3, ["subject"])):
        expected["subject"][:rows], found["subject"][:rows] = near, near[[1, 0, 2]]
        report = compare(a_manifest(), expected=expected, found=found, rows=some_rows(), precision="fp16")
        assert failed(report) == outcome


def test_a_label_that_crosses_its_threshold_is_another_answer() -> None:
    expected, found = right(), right()
    expected["themes"][:5, 1], found["themes"][:5, 1] = 0.2001, 0.1999
    report = compare(a_manifest(), expected=expected, found=found, rows=some_rows(), precision="fp16")
    assert failed(report) == ["themes"]  # 5 of 4,000 answers
    assert set(report.findings[1].bad_rows) == set(range(5))


def test_a_regression_is_compared_in_proportion() -> None:
    found = right()
    found["pages"][3] *= 1.005
    assert compared(found).passed
    found["pages"][3] *= 1.02
    assert failed(compared(found)) == ["pages"]


def test_an_embedding_that_points_elsewhere_fails_and_one_of_other_length_does_not() -> None:
    found = right()
    found["embedding"] *= 2
    assert compared(found).passed
    found["embedding"][9] = found["embedding"][9][::-1]
    report = compared(found)
    assert failed(report) == ["embedding"]
    assert report.findings[3].bad_rows == (9,)


@pytest.mark.parametrize("output", ["subject", "themes", "pages", "embedding"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails(output: str, value: float) -> None:
    found = right()
    found[output][1999, 1] = value
    report = compared(found)
    assert failed(report) == [output]
    assert [finding.bad_rows for finding in report.findings if not finding.passed] == [(1999,)]


def test_one_failing_task_blocks_and_the_message_names_it_and_its_rows() -> None:
    found = right()
    found["subject"][[4, 7]] = [0.2, 0.7, 0.1]
    with pytest.raises(NotVerified) as raised:
        compared(found).require()
    assert str(raised.value).startswith("subject: agreement 0.99900")
    assert "rows 4 (mixed), 7 (empty text)" in str(raised.value)
    assert "themes" not in str(raised.value)


def test_the_report_as_json_names_the_rows() -> None:
    found = right()
    found["pages"][12] = np.nan
    document: Any = as_document(compared(found))
    assert document["passed"] is False
    pages = document["outputs"][2]
    assert (pages["output"], pages["passed"], pages["difference_max"]) == ("pages", False, "not finite")
    assert pages["bad_rows"] == [{"row": 12, "kind": "mixed"}]


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a[:, :-1]], ids=["rows", "columns"])
def test_an_output_of_another_shape_fails(change: Any) -> None:
    with pytest.raises(NotVerified, match="themes: expected the shape"):
        compared(right() | {"themes": change(right()["themes"])})


def test_a_missing_output_fails() -> None:
    found = right()
    del found["pages"]
    with pytest.raises(NotVerified, match="pages: expected the shape"):
        compared(found)


def test_the_rows_hold_empty_texts_no_covers_and_the_longest_text(shipped: Bundle, rows: Rows) -> None:
    assert len(rows) >= ROWS_MIN
    features, kinds = rows.features, np.array(rows.kinds)
    assert min(Counter(rows.kinds).values()) >= 48
    tokens = (features.token_ids != 0).sum(axis=1)
    assert (tokens[kinds == "empty text"] == 0).all()
    assert (tokens[kinds == "longest text"] == shipped.manifest.features.tokens_max).all()
    assert (features.cover_present[kinds == "no cover"] == 0).all()
    assert not features.cover[kinds == "no cover"].any()
    assert (features.cover_present[kinds == "mixed"] == 1).all()
    texts = np.unique(features.token_ids[kinds == "mixed"], axis=0)
    covers = np.unique(features.cover[kinds == "empty text"], axis=0)
    assert (len(texts), len(covers)) == (500, 500)


def test_the_rows_are_the_same_every_time(shipped: Bundle, rows: Rows) -> None:
    again = verification_rows(shipped.golden()[0], tokens=shipped.manifest.features.tokens_max)
    assert again.kinds == rows.kinds
    for name, array in again.features.as_feed().items():
        assert np.array_equal(array, rows.features.as_feed()[name])


class CountingRunner:
    """Gives each row its number, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
        start = sum(self.batches)
        self.batches.append(len(inputs["token_ids"]))
        return {"number": np.arange(start, start + self.batches[-1], dtype=np.float32)}

    def close(self) -> None:
        """Nothing is held."""


def test_rows_go_through_in_batches_and_come_back_in_order() -> None:
    runner = CountingRunner()
    assert outputs_of(runner, some_rows(), 768)["number"].tolist() == list(range(COUNT))
    assert runner.batches == [768, 768, 464]
