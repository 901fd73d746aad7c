"""A listing's predictions as the commands print them are the contract's."""

import json

from consumer.prediction_json import prediction_document
from consumer.task_prediction import Label, TaskPrediction


def test_the_document_is_the_contracts() -> None:
    """The document of a listing is the object that the contract shows."""
    predictions = {
        "department": TaskPrediction.classification((Label("Fiction", 0.83),)),
        "page_count": TaskPrediction.regression(312.0, 190.0, 505.0),
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
        assert json.loads(prediction.json) == document["predictions"][task]
