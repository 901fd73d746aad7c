"""The journey of real listings over a real Kafka, registry and Redis."""

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from consumer.prediction_json import prediction_document
from consumer.records import Enriched
from tests.journey.publishing import publish
from tests.journey.running import ROOT, RunningService, Surroundings, decode_enriched, read_topic, wait_for_answers

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("group_protocol", ["classic", "consumer"])
def test_each_input_offset_is_answered_exactly_once_and_in_order(
    surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]], group_protocol: str
) -> None:
    """2,000 real listings over 4 partitions: one answer an offset, in order per key; the store equals the topic."""
    surroundings.overrides["KAFKA__GROUP_PROTOCOL"] = group_protocol
    if group_protocol == "consumer":  # the broker says how long a session is (KIP-848)
        surroundings.overrides["KAFKA__PROPERTIES"] = "{}"
    publish(surroundings, two_thousand_listings)
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, len(two_thousand_listings))
        assert service.terminate() == 0
    inputs = read_topic(surroundings.bootstrap_servers, surroundings.topics.input)

    assert dead == []
    assert Counter(record.source for record in enriched) == Counter((one.partition, one.offset) for one in inputs)
    by_source = {record.source: record for record in enriched}
    for one in inputs:
        answer = by_source[one.partition, one.offset]
        assert (answer.key, answer.partition) == (one.key, one.partition)
    for partition in range(4):
        offsets = [record.source[1] for record in enriched if record.partition == partition]
        assert offsets == sorted(offsets)

    events = [event for event in decode_enriched(surroundings, enriched) if event is not None]
    stored = surroundings.stored([event["listing_id"] for event in events])
    for event in events:
        state = stored[event["listing_id"]]
        assert isinstance(state, Enriched)
        document = prediction_document(
            listing_id=state.listing_id, version=state.version, model=state.model, predictions=state.predictions
        )
        assert document["predictions"] == without_nulls(event["predictions"])
        assert (state.version, state.model_epoch) == (event["version"], event["model_epoch"])
        assert state.model == f"{event['model_name']}@{event['model_version']}"


def without_nulls(predictions: dict[str, Any]) -> dict[str, Any]:
    """The event's predictions as JSON has them: labels of a classification, numbers of a regression."""
    return {
        task: {"labels": one["labels"]} if one["value"] is None else {k: one[k] for k in ("value", "low", "high")}
        for task, one in predictions.items()
    }


def test_predict_gives_the_numbers_of_the_service(
    surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]]
) -> None:
    """`consumer predict` on the same lines prints what the service published, to the last printed digit but one."""
    listings = two_thousand_listings[::20]
    publish(surroundings, listings)
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, _ = wait_for_answers(surroundings, len(listings))
    served = {event["listing_id"]: event for event in decode_enriched(surroundings, enriched) if event is not None}
    lines = "".join(json.dumps(listing) + "\n" for listing in listings)
    finished = subprocess.run(
        [sys.executable, "-m", "consumer", "predict", "-"],
        input=lines.encode(),
        capture_output=True,
        cwd=ROOT,
        env=os.environ,
        check=True,
        timeout=120,
    )
    documents = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [document["listing_id"] for document in documents] == [listing["listing_id"] for listing in listings]
    for document in documents:
        event = served[document["listing_id"]]
        assert document["version"] == event["version"]
        assert_same_predictions(document["predictions"], without_nulls(event["predictions"]))


def assert_same_predictions(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal up to the rounding of the last digit: another batch around a listing may change the last bit of a float."""
    assert one.keys() == other.keys()
    for task, prediction in one.items():
        if "labels" in prediction:
            pairs = {label["label"]: label["confidence"] for label in prediction["labels"]}
            others = {label["label"]: label["confidence"] for label in other[task]["labels"]}
            for label in pairs.keys() & others.keys():
                assert pairs[label] == pytest.approx(others[label], abs=2e-4), (task, label)
            assert len(pairs.keys() ^ others.keys()) <= 2, task
        else:
            for name, value in prediction.items():
                assert value == pytest.approx(other[task][name], rel=1e-3, abs=1e-3), (task, name)


def test_an_unchanged_listing_is_answered_without_the_model(surroundings: Surroundings) -> None:
    """A new price leaves what the model sees as it was: the prediction is reused and the event says so."""
    book = {"listing_id": "a-1", "version": 1, "title": "A Brief History of Time", "authors": ["Stephen Hawking"], "price": 9.5}
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [book])
        wait_for_answers(surroundings, 1)
        publish(surroundings, [{**book, "version": 2, "price": 7.0}])
        wait_for_answers(surroundings, 2)
        publish(surroundings, [{**book, "version": 3, "title": "A Briefer History of Time"}])
        enriched, _ = wait_for_answers(surroundings, 3)
    events = [event for event in decode_enriched(surroundings, enriched) if event is not None]
    assert [(event["version"], event["outcome"]) for event in events] == [(1, "PREDICTED"), (2, "REUSED"), (3, "PREDICTED")]
    assert events[0]["predictions"] == events[1]["predictions"]
    state = surroundings.stored(["a-1"])["a-1"]
    assert isinstance(state, Enriched)
    assert state.version == 3


def test_at_least_once_answers_everything(surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]]) -> None:
    """With delivery.guarantee = at_least_once and no fault, each offset is answered once as well."""
    listings = two_thousand_listings[:400]
    publish(surroundings, listings)
    with RunningService(surroundings, DELIVERY__GUARANTEE="at_least_once") as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, len(listings))
        assert service.terminate() == 0
    assert dead == []
    assert len({record.source for record in enriched}) == len(enriched) == len(listings)
