"""What is said of a listing, as the object that the commands print."""

import json
from collections.abc import Mapping
from typing import Any

from consumer.records import State, Tombstone
from consumer.task_prediction import TaskPrediction


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
        "predictions": {task: json.loads(prediction.json) for task, prediction in predictions.items()},
    }


def state_document(listing_id: str, state: State | None) -> dict[str, Any]:
    """What the store holds of a listing, as `consumer get` prints it."""
    if state is None:
        return {"listing_id": listing_id, "found": False}
    if isinstance(state, Tombstone):
        return {"listing_id": listing_id, "version": state.version, "deleted": True}
    return prediction_document(listing_id=listing_id, version=state.version, model=state.model, predictions=state.predictions)
