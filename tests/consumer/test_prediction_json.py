"""A prediction as JSON is the contract's, and comes back number for number."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.prediction_json import prediction_document, task_from_json, task_to_json
from consumer.records import Label, TaskPrediction

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LABELS = st.builds(Label, st.text(), NUMBERS)
CLASSIFICATIONS = st.builds(TaskPrediction, labels=st.lists(LABELS, max_size=5).map(tuple))
REGRESSIONS = st.builds(TaskPrediction, value=NUMBERS, low=st.none() | NUMBERS, high=NUMBERS)


@given(prediction=CLASSIFICATIONS | REGRESSIONS)
def test_a_prediction_comes_back_as_it_was(prediction: TaskPrediction) -> None:
    """What was written is valid JSON, has no needless spaces, and comes back number for number."""
    text = task_to_json(prediction)
    assert task_from_json(text) == prediction
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


def test_the_document_is_the_contracts() -> None:
    """The document of a listing is the object that the contract shows."""
    predictions = {
        "department": TaskPrediction(labels=(Label("Fiction", 0.83),)),
        "page_count": TaskPrediction(value=312.0, low=190.0, high=505.0),
    }
    document = prediction_document(listing_id="bd-1", version=17, model="books@1.2.0", predictions=predictions)
    assert document == {
        "listing_id": "bd-1",
        "version": 17,
        "model": "books@1.2.0",
        "predictions": {
            "department": {"labels": [{"label": "Fiction", "confidence": 0.83}]},
            "page_count": {"value": 312.0, "low": 190.0, "high": 505.0},
        },
    }
    for task, prediction in predictions.items():
        assert json.loads(task_to_json(prediction)) == document["predictions"][task]


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    """A float of numpy's is written as a number, not as its repr."""
    assert task_to_json(TaskPrediction(value=np.float64(0.5))) == '{"value":0.5,"low":null,"high":null}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(number: float) -> None:
    """JSON has no word for NaN and infinity: they are refused rather than written."""
    with pytest.raises(ValueError, match="expected a finite number"):
        task_to_json(TaskPrediction(labels=(Label("Fiction", number),)))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"labels": 3}', '{"labels": [{"label": "a"}]}', b"\xff"])
def test_what_is_not_a_prediction_is_refused(text: str | bytes) -> None:
    """What is not a task's prediction is refused."""
    with pytest.raises(ValueError, match=r".+"):
        task_from_json(text)
