"""What comes in and what the model says of it, as metrics: what an operator looks at when nothing fails and answers are bad.

Counted a batch at a time in arrays and turned into metrics only when they are read: an `observe` for each record and task would
cost as much as decoding it. The names, units and meanings stand in `collect`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from consumer.records import Change, CoverUse
from model.bundle import Manifest, TaskSpec
from model.listing import Listing
from model.reference import label_counts, stability_index
from model.text import language_code

# Predictions that weigh in the index: those of more than so many ago fade (by 1/e). An index of fewer than `INDEX_ROWS_MIN`, or
# of fewer than `_ROWS_PER_LABEL` a label, would be mostly chance: its expectation without any shift is about labels / rows.
INDEX_WINDOW_ROWS = 10_000
INDEX_ROWS_MIN = 1_000
_ROWS_PER_LABEL = 20

_CONFIDENCES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
_CHARACTERS = np.array([0, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000])
_FIELDS = ("title", "authors", "description", "language", "cover")
_LANGUAGES = ("known", "unknown", "none")

Observer = Callable[[TaskSpec, NDArray[np.float32]], None]


@dataclass(slots=True)
class _Histogram:
    """Counts by bucket (`bounds` are their upper ends, and one more) and the sum of what was observed."""

    bounds: NDArray[np.float64] | NDArray[np.int64]
    counts: NDArray[np.int64] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.bounds) + 1, dtype=np.int64)

    def observe(self, values: NDArray[np.float32] | NDArray[np.int64]) -> None:
        self.counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
        self.total += float(values.sum(dtype=np.float64))

    def buckets(self) -> list[tuple[str, float]]:
        ends = [*(f"{float(bound)}" for bound in self.bounds), "+Inf"]
        return list(zip(ends, self.counts.cumsum().astype(float).tolist(), strict=True))


class Drift(Collector):
    """Counts of one service. `count_listings` and an observer may run on threads of their own, `collect` on any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listings = 0
        self._lacking = dict.fromkeys(_FIELDS, 0)
        self._languages = dict.fromkeys(_LANGUAGES, 0)
        self._characters = _Histogram(_CHARACTERS)
        self._confidences: dict[str, _Histogram] = {}
        self._known_languages: frozenset[str] | None = None
        self._expected: dict[str, NDArray[np.float64]] = {}
        self._recent: dict[str, NDArray[np.float64]] = {}  # label counts, fading

    def watch(self, manifest: Manifest) -> Observer:
        """The observer of a model that takes over: give it to its `Predictor`. What an earlier one's says afterwards is dropped.

        A manifest without a reference, as bundles made before there was one have, gives no stability index.
        """
        expected = {name: np.array(shares) for name, shares in manifest.reference.items()}
        recent = {name: np.zeros(len(shares)) for name, shares in expected.items()}
        languages = next((task.labels for task in manifest.tasks if task.name == "language"), None)
        with self._lock:
            self._expected, self._recent = expected, recent
            self._known_languages = None if languages is None else frozenset(languages)

        def observe(task: TaskSpec, probabilities: NDArray[np.float32]) -> None:
            counts, confidences = label_counts(task, probabilities)
            with self._lock:
                if self._recent is not recent:
                    return
                self._confidences.setdefault(task.name, _Histogram(_CONFIDENCES)).observe(confidences)
                if (faded := recent.get(task.name)) is not None:
                    faded *= np.exp(-len(confidences) / INDEX_WINDOW_ROWS)
                    faded += counts

        return observe

    def count_listings(self, changes: Sequence[Change], covers: Mapping[str, CoverUse]) -> None:
        """What a batch of decoded changes states and lacks; deletions are left out."""
        listings = [change.listing for change in changes if change.listing is not None]
        if not listings:
            return
        lacking = {name: sum(not getattr(one, name) for one in listings) for name in _FIELDS if name != "cover"}
        lacking["cover"] = sum(covers.get(one.listing_id) is not CoverUse.USED for one in listings)
        characters = np.array([len(one.title or "") + len(one.description or "") for one in listings])
        known = self._known_languages
        stated = [_language_is(one, known) for one in listings]
        with self._lock:
            self._listings += len(listings)
            self._characters.observe(characters)
            for name, count in lacking.items():
                self._lacking[name] += count
            for language in _LANGUAGES:
                self._languages[language] += stated.count(language)

    def indices(self) -> dict[str, float]:
        """Task to its stability index, of those with a reference and enough predictions."""
        with self._lock:
            return {
                task: stability_index(self._expected[task], counts)
                for task, counts in self._recent.items()
                if counts.sum() >= max(INDEX_ROWS_MIN, _ROWS_PER_LABEL * len(counts))
            }

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """The metrics as they are now."""
        yield from self._inputs()
        confidence = HistogramMetricFamily(
            "enricher_confidence",
            "Highest probability (0 to 1) that the model gave any label of a listing, by task; of tasks with labels.",
            labels=["task"],
        )
        with self._lock:
            for task, one in self._confidences.items():
                confidence.add_metric([task], one.buckets(), one.total)
        yield confidence
        index = GaugeMetricFamily(
            "enricher_prediction_stability_index",
            "Population stability index (no unit; above 0.25 is a large shift) of the labels given by this replica, about the "
            "last 10,000, against those that the model gave its validation data; absent where the bundle has no reference.",
            labels=["task"],
        )
        for task, value in self.indices().items():
            index.add_metric([task], value)
        yield index

    def _inputs(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        with self._lock:
            yield CounterMetricFamily("enricher_listings", "Listings decoded, deletions apart.", value=self._listings)
            lacking = CounterMetricFamily(
                "enricher_listings_lacking",
                "Listings that lack a field: title, authors, description or language is empty, or the model saw no cover.",
                labels=["field"],
            )
            _add_all(lacking, self._lacking.items())
            yield lacking
            languages = CounterMetricFamily(
                "enricher_listing_languages",
                "Listings by the language they state: known to the model, unknown to it, or none.",
                labels=["language"],
            )
            _add_all(languages, self._languages.items())
            yield languages
            characters = HistogramMetricFamily("enricher_listing_characters", "Characters of a listing's title and description.")
            characters.add_metric([], self._characters.buckets(), self._characters.total)
            yield characters


def _language_is(listing: Listing, known: frozenset[str] | None) -> str:
    if not listing.language:
        return "none"
    return "known" if known is None or language_code(listing.language) in known else "unknown"


def _add_all(family: CounterMetricFamily, values: Iterable[tuple[str, int]]) -> None:
    for label, value in values:
        family.add_metric([label], value)
