"""Both texts of a prediction are what json and fastavro would write, and come back number for number."""

import io
import json
import math
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.schemas import ENRICHED_LISTING
from consumer.task_prediction import CONFIDENCE_STEPS, Label, TaskPrediction, avro_long, avro_string

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LABELS = st.builds(Label, TEXTS, NUMBERS)
OURS = st.builds(Label, TEXTS, st.integers(0, CONFIDENCE_STEPS).map(lambda step: step / CONFIDENCE_STEPS))
CLASSIFICATIONS = st.builds(TaskPrediction.classification, st.lists(LABELS, max_size=5) | st.lists(OURS, max_size=5))
REGRESSIONS = st.builds(TaskPrediction.regression, NUMBERS, st.none() | NUMBERS, NUMBERS)
RECORD = next(one for one in json.loads(ENRICHED_LISTING)["fields"] if one["name"] == "predictions")["type"]["values"]


def by_fastavro(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def as_record(prediction: TaskPrediction) -> dict[str, Any]:
    value, low, high = prediction.values
    labels = [{"label": one.label, "confidence": one.confidence} for one in prediction.labels or ()]
    return {"labels": labels, "value": value, "low": low, "high": high}


@given(prediction=CLASSIFICATIONS | REGRESSIONS)
def test_a_prediction_comes_back_as_it_was(prediction: TaskPrediction) -> None:
    """What was written is valid JSON, has no needless spaces, and comes back number for number."""
    assert TaskPrediction.from_json(prediction.json) == prediction
    assert prediction.json == json.dumps(json.loads(prediction.json), separators=(",", ":"), ensure_ascii=False)


@given(prediction=CLASSIFICATIONS | REGRESSIONS)
def test_the_avro_is_fastavros(prediction: TaskPrediction) -> None:
    """Byte for byte, also when it was read from the store."""
    assert prediction.avro == by_fastavro(RECORD, as_record(prediction))
    assert TaskPrediction.from_json(prediction.json.encode()).avro == prediction.avro


@pytest.mark.parametrize(
    "text",
    [
        '{"labels": [{"label": "a", "confidence": 0.5}]}',
        '{"labels":[{"label":"a","confidence":0.50}]}',
        '{"labels":[{"confidence":0.5,"label":"a"}]}',
        '{"labels":[{"label":"a","confidence":0.5,"more":1}]}',
        '{"labels":[{"label":"\\u0061","confidence":0.5}],"more":2}',
    ],
)
def test_what_others_wrote_of_the_same_meaning_is_written_as_ours(text: str) -> None:
    ours = TaskPrediction.classification([Label("a", 0.5)])
    assert (TaskPrediction.from_json(text), TaskPrediction.from_json(text).avro) == (ours, ours.avro)


def test_a_name_that_looks_like_our_json_stays_a_name() -> None:
    trap = Label('"},{"label":"b","confidence":0.5}]}', 0.25)
    found = TaskPrediction.from_json(TaskPrediction.classification([trap, trap]).json)
    assert found.labels == (trap, trap)
    assert found.avro == by_fastavro(RECORD, as_record(found))


@given(number=st.integers(-(2**63), 2**63 - 1))
def test_a_long_is_fastavros(number: int) -> None:
    """Over the whole range."""
    assert avro_long(number) == by_fastavro("long", number)


@given(text=TEXTS)
def test_a_string_is_fastavros(text: str) -> None:
    """Its length counts bytes, not characters."""
    assert avro_string(text) == by_fastavro("string", text)


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    """A float of numpy's is written as a number, not as its repr."""
    assert TaskPrediction.regression(np.float64(0.5), None, None).json == '{"value":0.5,"low":null,"high":null}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(number: float) -> None:
    """JSON has no word for NaN and infinity: they are refused rather than written."""
    with pytest.raises(ValueError, match="expected a finite number"):
        TaskPrediction.classification((Label("Fiction", number),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"labels":[{"label":3,"confidence":0.5}]}',
        '{"labels":[{"label":"a"}]}',
        '{"labels": 3}',
        '{"labels": [{"label": "a"}]}',
        b"\xff",
    ],
)
def test_what_is_not_a_prediction_is_refused(text: str | bytes) -> None:
    """What is not a task's prediction is refused."""
    with pytest.raises(ValueError, match=r".+"):
        TaskPrediction.from_json(text)
