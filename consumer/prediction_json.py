"""A prediction as JSON: the same text in the store, in the commands' output and in the documentation.

Pure. The text is put together by hand: it is written for each task of each listing, and that takes half of json.dumps'
time.
"""

import json
from collections.abc import Mapping
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

from consumer.records import Label, State, TaskPrediction, Tombstone


def task_to_json(prediction: TaskPrediction) -> str:
    """`{"labels":[{"label":…,"confidence":…}]}` of a classification, `{"value":…,"low":…,"high":…}` of a regression.

    Raises:
        ValueError: a number is not finite; JSON has no word for it.
    """
    if prediction.labels is None:
        value, low, high = _number(prediction.value), _number(prediction.low), _number(prediction.high)
        return f'{{"value":{value},"low":{low},"high":{high}}}'
    labels = [f'{{"label":{encode_basestring(one.label)},"confidence":{_number(one.confidence)}}}' for one in prediction.labels]
    return '{"labels":[' + ",".join(labels) + "]}"


def task_from_json(text: str | bytes) -> TaskPrediction:
    """What `task_to_json` wrote, number for number.

    Raises:
        ValueError: the text is not a task's prediction.
    """
    try:
        content = json.loads(text)
        if "labels" in content:
            return TaskPrediction(labels=tuple([Label(one["label"], one["confidence"]) for one in content["labels"]]))
        return TaskPrediction(value=content["value"], low=content["low"], high=content["high"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a task's prediction in JSON, found {text[:80]!r}") from error


def prediction_document(
    *, listing_id: str, version: int, model: str, predictions: Mapping[str, TaskPrediction]
) -> dict[str, Any]:
    """A listing's predictions as the object that `predict` and `get` print.

    Args:
        model: `name@version`.
    """
    return {
        "listing_id": listing_id,
        "version": version,
        "model": model,
        "predictions": {task: _task_document(prediction) for task, prediction in predictions.items()},
    }


def state_document(listing_id: str, state: State | None) -> dict[str, Any]:
    """What the store holds of a listing, as `consumer get` prints it."""
    if state is None:
        return {"listing_id": listing_id, "found": False}
    if isinstance(state, Tombstone):
        return {"listing_id": listing_id, "version": state.version, "deleted": True}
    return prediction_document(listing_id=listing_id, version=state.version, model=state.model, predictions=state.predictions)


def _task_document(prediction: TaskPrediction) -> dict[str, Any]:
    if prediction.labels is None:
        return {"value": prediction.value, "low": prediction.low, "high": prediction.high}
    return {"labels": [{"label": one.label, "confidence": one.confidence} for one in prediction.labels]}


def _number(value: float | None) -> str:
    if value is None:
        return "null"
    if not isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return repr(float(value))  # float(): numpy's own floats have another repr
