"""What an operator sees of inputs and answers that shift while nothing fails."""

from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from consumer.drift import INDEX_ROWS_MIN, INDEX_WINDOW_ROWS, Drift
from consumer.records import CoverUse
from model.bundle import Bundle, Manifest, TaskSpec
from tests.consumer.journey import Journey
from tests.examples import a_change_event, a_chinese_novel, a_delete, a_deletion, a_numbered_book, a_used_hardback, an_update
from tests.fake_model import TASKS

DEPARTMENT, TOPICS = TASKS[0], TASKS[1]
EVEN = (0.5, 0.5, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def watched(tiny_bundle: Bundle) -> Callable[..., tuple[Drift, Manifest]]:
    def make(**changed: object) -> tuple[Drift, Manifest]:
        return Drift(), tiny_bundle.manifest.model_copy(update=changed)

    return make


def value(drift: Drift, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(drift)
    return registry.get_sample_value(name, labels)


def answers(labels: list[int], *, task: TaskSpec = DEPARTMENT, confidence: float = 0.75) -> np.ndarray:
    """Probabilities that give these labels, one a row."""
    array = np.full((len(labels), len(task.labels)), (1 - confidence) / (len(task.labels) - 1), np.float32)
    array[np.arange(len(labels)), labels] = confidence
    return array


def test_what_listings_lack_is_counted() -> None:
    """Listings are counted by what they lack, also a cover that the model did not see; deletions do not count."""
    drift = Drift()
    changes = [an_update(a_used_hardback("a")), an_update(a_chinese_novel("b")), an_update(a_numbered_book(1)), a_delete("d")]
    drift.count_listings(changes, {"a": CoverUse.USED, "b": CoverUse.MISSING, "book-1": CoverUse.NONE})
    assert value(drift, "enricher_listings_total") == 3
    lacking = {
        name: value(drift, "enricher_listings_lacking_total", field=name) for name in ("title", "authors", "description", "cover")
    }
    assert lacking == {"title": 0, "authors": 1, "description": 1, "cover": 2}
    assert value(drift, "enricher_listing_characters_count") == 3
    texts = [change.listing for change in changes if change.listing]
    assert value(drift, "enricher_listing_characters_sum") == sum(len(x.title or "") + len(x.description or "") for x in texts)
    assert value(drift, "enricher_listing_characters_bucket", le="20.0") == 1


def test_a_language_that_the_model_was_not_taught_is_unknown(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """A stated language is known where the language task has it, whatever its spelling; without that task all are known."""
    drift, manifest = watched()
    changes = [an_update(a_used_hardback()), an_update(a_chinese_novel())]
    drift.watch(manifest)
    drift.count_listings(changes, {})
    assert value(drift, "enricher_listing_languages_total", language="known") == 2
    drift.watch(manifest.model_copy(update={"tasks": (TaskSpec(name="language", kind="single", labels=("en", "other")),)}))
    drift.count_listings(changes, {})
    assert value(drift, "enricher_listing_languages_total", language="known") == 3
    assert value(drift, "enricher_listing_languages_total", language="unknown") == 1


def test_confidences_are_a_histogram_by_task(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """The highest probability of each row is observed, with bounds that include their own value."""
    drift, manifest = watched()
    observe = drift.watch(manifest)
    observe(DEPARTMENT, answers([0, 1, 1]))
    observe(DEPARTMENT, answers([0], confidence=0.5))
    bucket = {
        le: value(drift, "enricher_confidence_bucket", task="department", le=le) for le in ("0.4", "0.5", "0.7", "0.8", "+Inf")
    }
    assert bucket == {"0.4": 0, "0.5": 1, "0.7": 1, "0.8": 4, "+Inf": 4}
    assert value(drift, "enricher_confidence_sum", task="department") == pytest.approx(3 * 0.75 + 0.5)


def test_the_index_is_small_without_a_shift_and_large_with_one(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """Labels given as often as on the validation data: near 0. Only one of two given: above 0.25. Too few: no index at all."""
    drift, manifest = watched(reference={"department": EVEN})
    observe = drift.watch(manifest)
    observe(DEPARTMENT, answers([0, 1] * 100))
    assert drift.indices() == {}
    observe(DEPARTMENT, answers([0, 1] * INDEX_ROWS_MIN))
    assert abs(drift.indices()["department"]) < 0.01
    for _ in range(3):
        observe(DEPARTMENT, answers([1] * INDEX_WINDOW_ROWS))
    assert value(drift, "enricher_prediction_stability_index", task="department") == drift.indices()["department"] > 0.25
    for _ in range(3):  # what was long ago is forgotten
        observe(DEPARTMENT, answers([0, 1] * (INDEX_WINDOW_ROWS // 2)))
    assert abs(drift.indices()["department"]) < 0.02


def test_a_multi_label_task_is_compared_by_the_labels_it_gives(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """Of a task with several labels those that reach their thresholds are counted."""
    drift, manifest = watched(reference={"topics": (0.5, 0.5, 0.0)})
    row = np.array([[0.2, 0.5, 0.89]], np.float32)  # the first two reach 0.2 and 0.5, the third not 0.9
    drift.watch(manifest)(TOPICS, np.repeat(row, INDEX_ROWS_MIN, axis=0))
    assert abs(drift.indices()["topics"]) < 0.01


def test_a_bundle_without_a_reference_has_no_index(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """A bundle that was made before there was a reference is served, and has no index."""
    drift, manifest = watched()
    assert manifest.reference == {}
    drift.watch(manifest)(DEPARTMENT, answers([0] * INDEX_ROWS_MIN * 2))
    assert drift.indices() == {}
    assert value(drift, "enricher_prediction_stability_index", task="department") is None


def test_the_next_model_begins_anew(watched: Callable[..., tuple[Drift, Manifest]]) -> None:
    """After another model took over, what the former one still says does not count."""
    drift, manifest = watched(reference={"department": EVEN})
    former = drift.watch(manifest)
    former(DEPARTMENT, answers([1] * 5_000))
    drift.watch(manifest)
    former(DEPARTMENT, answers([1] * 5_000))
    assert drift.indices() == {}
    assert value(drift, "enricher_confidence_count", task="department") == 5_000


def test_the_pipeline_counts_what_it_reads_and_what_it_answers(journey: Callable[..., Journey]) -> None:
    """A journey leaves its listings, content lookups, batch age and confidences in the metrics; a task not asked is not there."""
    one = journey(batch={"max_records": 1, "max_in_flight": 1})  # so that the last change finds the first in the store
    books = [a_used_hardback(), a_chinese_novel(), a_numbered_book(1)]
    one.kafka.publish(*(a_change_event(book) for book in books), a_deletion("bd-9"))
    one.kafka.publish(a_change_event(a_used_hardback(version=18, price=1.0)))
    one.run()
    assert one.metric("enricher_listings_total") == 4
    assert one.metric("enricher_listings_lacking_total", field="cover") == 4
    assert one.metric("enricher_content_lookups_total", result="miss") == 3
    assert one.metric("enricher_batch_age_seconds_count") == one.metric("enricher_batch_records_count")
    assert one.metric("enricher_confidence_count", task="department") == 3
    assert one.metric("enricher_confidence_count", task="publisher") == 2  # the hardback states its own
    assert one.metric("enricher_confidence_count", task="page_count") is None
    assert one.metric("enricher_content_lookups_total", result="hit") == 1
