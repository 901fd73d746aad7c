"""A model in memory: a real bundle with a real vocabulary, and a backend that answers in its graph's place."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consumer.inference import Arrays, InferenceFailed
from model.bundle import GOLDEN, GRAPH, VOCABULARY, Bundle, Manifest, TaskSpec, TensorSpec, save_golden, write_bundle
from model.features import FeatureExtractor, FeatureSettings, Vocabulary
from model.listing import Listing
from model.text import grams_of
from tests.examples import a_chinese_novel, a_numbered_book, a_used_hardback

TASKS = (
    TaskSpec(name="department", kind="single", labels=("Art", "Fiction", "History", "Poetry", "Science", "Travel")),
    TaskSpec(name="topics", kind="multi", labels=("stars", "time", "历史"), thresholds=(0.2, 0.5, 0.9)),
    TaskSpec(
        name="price_band",
        kind="ordinal",
        labels=("USD <10", "USD >=10", "CNY <30", "CNY >=30"),
        group_field="currency",
        groups={"USD": (0, 2), "CNY": (2, 4)},
    ),
    TaskSpec(name="publisher", kind="single", labels=("Bantam", "Penguin"), asked_only_where_missing="publisher"),
    TaskSpec(name="page_count", kind="regression"),
)
SMALL_COVERS = FeatureSettings(cover_height=8, cover_width=8)


def a_tiny_bundle(path: Path) -> Bundle:
    """A real bundle on disk whose graph is no graph: `FakeBackend` answers in its place."""
    known = [a_used_hardback(), a_chinese_novel(), *(a_numbered_book(number) for number in range(1_000))]
    hashes = np.unique(grams_of(known, SMALL_COVERS).hashes)
    vocabulary = Vocabulary(hashes=hashes, idf=np.ones(len(hashes), np.float16), families=np.zeros(len(hashes), np.uint8))
    golden = FeatureExtractor(SMALL_COVERS, vocabulary).extract(known[:3], [None] * 3)

    def fill(folder: Path) -> Manifest:
        (folder / GRAPH).write_bytes(b"no graph")
        vocabulary.save(folder / VOCABULARY)
        save_golden(folder / GOLDEN, golden, FakeBackend().infer(golden.as_feed()))
        outputs = tuple(TensorSpec(name=task.name, dtype="float32", shape=("batch", _width(task))) for task in TASKS)
        return Manifest(
            name="tiny",
            version="1.0.0",
            epoch=3,
            tasks=TASKS,
            features=SMALL_COVERS,
            inputs=(),
            outputs=outputs,
            data_fingerprint="",
        )

    return write_bundle(path, fill)


def _width(task: TaskSpec) -> int:
    return len(task.labels) or 3


class FakeBackend:
    """Answers that depend on a listing's features and on nothing else, so they are the same in every batch.

    Attributes:
        poison: fingerprints of listings that no batch survives.
        nan: fingerprints of listings whose outputs are all NaN.
        infinite: fingerprints of listings whose outputs are all infinite.
        released: `infer` waits for it (at most 10 s).
        before_infer: called by the next calls, in turn, before they wait.
        batches: how many rows each call had.
    """

    name = "fake"
    engine: str | None = None

    def __init__(self) -> None:
        self.poison: set[int] = set()
        self.nan: set[int] = set()
        self.infinite: set[int] = set()
        self.released = threading.Event()
        self.released.set()
        self.before_infer: deque[Callable[[], object]] = deque()
        self.batches: list[int] = []

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        if self.before_infer:
            self.before_infer.popleft()()
        assert self.released.wait(10), "the test never released the backend"
        seen = fingerprints(inputs)
        self.batches.append(len(seen))
        if self.poison.intersection(seen):
            raise InferenceFailed("poisoned")
        outputs = {task.name: _outputs(task, seen) for task in TASKS}
        for bad, number in ((self.nan, np.nan), (self.infinite, np.inf)):
            for row in [row for row, one in enumerate(seen) if one in bad]:
                for array in outputs.values():
                    array[row] = number
        return outputs

    def close(self) -> None:
        """Nothing is held."""


def fingerprints(inputs: Arrays) -> list[int]:
    """One number for each row, from its tokens and its cover."""
    tokens = inputs["token_ids"].astype(np.int64)
    cover = inputs["cover"].astype(np.int64).reshape(len(tokens), -1).sum(axis=1)
    mixed: NDArray[np.int64] = (tokens * (tokens + 7919) % 1_000_003).sum(axis=1) + cover * 31
    return [int(one) for one in mixed]


def fingerprint(bundle: Bundle, listing: Listing) -> int:
    """What `FakeBackend` knows a listing without a cover by."""
    return fingerprints(bundle.extractor().extract([listing], [None]).as_feed())[0]


def _outputs(task: TaskSpec, seen: Sequence[int]) -> NDArray[np.float32]:
    raw = np.array([[(one * (column + 3) + 17 * column) % 101 + 1 for column in range(_width(task))] for one in seen], float)
    if task.kind == "multi":
        return (raw / 102).astype(np.float32)
    if task.kind == "regression":
        return np.sort(raw, axis=1)[:, [1, 0, 2]].astype(np.float32)
    shares: NDArray[np.float32] = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
