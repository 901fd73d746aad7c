"""A yardstick of none of our code: TF-IDF of scikit-learn and a LinearSVC, nothing tuned: `python -m tests.benchmarks.plain_svm`.

Title and authors are one text (of Douban's group and topics the publisher, too): words 1-2, characters 2-5 inside words,
sublinear term frequencies. Judged on `valid`, learned from `train`, and on the seventh of `unseen`, learned from the rest of
`train`. A multi-label task has one threshold, the best for the very rows it is judged on. 15 minutes on one core.

With `--bundle`, how far that bundle is ahead of it on `valid`, and what 95 of 100 draws of these rows give: parts of the data
differ in how hard they are by more than two models do, a lead over one yardstick does not. Not for a refit, which has learned
from `valid`.
"""

import argparse
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from model.bundle import Bundle
from model.dataset import Rows, labels_of
from model.evaluate import answers, open_session
from model.listing import Listing
from model.tasks import Task, load_task_file, resolve
from tests.benchmarks.unseen import ROOT, parts_of_data

# Task, set, and whether the publisher is part of the text.
ASKED = (
    ("department", "bookdepository", False),
    ("departments", "bookdepository", False),
    ("publisher", "bookdepository", False),
    ("publisher", "douban-zh", False),
    ("group", "douban-zh", True),
    ("topics", "douban-zh", True),
    ("shelves", "gutenberg", False),
    ("library_class", "gutenberg", False),
)
_THRESHOLDS = np.linspace(-1.0, 0.5, 61)
_DRAWS, _INTERVAL = 5000, (0.025, 0.975)
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="of them only these")
    parser.add_argument("--c", type=float, nargs="+", default=[1.0, 0.3], help="of the SVM")
    parser.add_argument("--bundle", type=Path, help="one that has not learned from `valid`, as `make train` leaves in runs/")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    bundle = Bundle.load(arguments.bundle) if arguments.bundle else None
    if bundle and bundle.manifest.settings.get("refit"):
        parser.error(f"expected a bundle that has not learned from valid, found a refit: {arguments.bundle}")
    task_file = load_task_file(ROOT / "model" / "books.toml")
    train, valid, held, others = parts_of_data(task_file)
    tasks = {entry.name: resolve(entry, train.by_set()) for entry in task_file.task}
    parts = [("valid", train, valid)] if bundle else [("seventh", others, held), ("valid", train, valid)]
    for name, own_set, publisher in ASKED:
        if arguments.tasks and name not in arguments.tasks:
            continue
        task = tasks[name]
        for where, learned, judged in parts:
            texts, values = of_set(task, learned, own_set, publisher=publisher)
            asked, truth = of_set(task, judged, own_set, publisher=publisher)
            matrix, other = vectorised(texts, asked)
            ours = None if bundle is None else of_bundle(bundle, task, judged, own_set)
            for c in arguments.c:
                its = counted(task, (matrix, values), (other, truth), c=c)
                ahead = "" if ours is None else lead(ours, its)
                of = f"{len(truth)} rows, {len(values)} learned"
                print(f"{name:14} {own_set:14} {where:7} C {c:g}: {score(its):.4f} of {of}{ahead}", flush=True)


def of_set(task: Task, rows: Rows, name: str, *, publisher: bool) -> tuple[list[str], NDArray[Any]]:
    """Texts and labels of the set's rows that have the label."""
    own = labels_of(task, rows)
    index = np.flatnonzero(own.present & (np.array(rows.sets) == name))
    return [text_of(rows.listings[row], publisher=publisher) for row in index], own.values[index]


def text_of(listing: Listing, *, publisher: bool) -> str:
    return " ".join([listing.title or "", *listing.authors, (listing.publisher or "") if publisher else ""])


def vectorised(learned: Sequence[str], judged: Sequence[str]) -> tuple[csr_matrix, csr_matrix]:
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True, dtype=np.float32)
    first, second = ([_CJK.sub(r" \1 ", text) for text in texts] for texts in (learned, judged))  # each sign is a word
    matrix = hstack([words.fit_transform(first), characters.fit_transform(learned)]).tocsr()
    return matrix, hstack([words.transform(second), characters.transform(judged)]).tocsr()


def counted(
    task: Task, learned: tuple[csr_matrix, NDArray[Any]], judged: tuple[csr_matrix, NDArray[Any]], *, c: float
) -> NDArray[Any]:
    """The SVM's `counts`."""
    (matrix, values), (other, truth) = learned, judged
    if task.entry.kind != "multi":
        return counts(task, LinearSVC(C=c, random_state=0).fit(matrix, values).predict(other), truth)
    margins = np.full(truth.shape, -9.0)
    for column in np.flatnonzero((values > 0.5).sum(axis=0) > 1):
        margins[:, column] = LinearSVC(C=c, random_state=0).fit(matrix, values[:, column] > 0.5).decision_function(other)
    return max((counts(task, margins >= threshold, truth) for threshold in _THRESHOLDS), key=score)


def of_bundle(bundle: Bundle, task: Task, rows: Rows, name: str) -> NDArray[Any]:
    """The bundle's `counts` on the set's rows that have the label."""
    own = labels_of(task, rows)
    output = answers(open_session(bundle.graph_path), bundle.extractor(), rows, [task], {task.name: own})[task.name]
    [spec] = [each for each in bundle.manifest.tasks if each.name == task.name]
    given: NDArray[Any] = output >= np.array(spec.thresholds) if task.entry.kind == "multi" else output.argmax(axis=1)
    inside = np.array(rows.sets)[own.present] == name
    return counts(task, given[inside], own.values[own.present][inside])


def counts(task: Task, given: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Float64 [rows, 2]; the first column's sum by the second's is the accuracy, or for a multi-label task the micro-F1."""
    if task.entry.kind != "multi":
        return np.stack([given == truth, np.ones(len(truth))], axis=1)
    right = truth > 0.5
    return np.stack([2.0 * (given & right).sum(axis=1), given.sum(axis=1) + right.sum(axis=1)], axis=1)


def score(found: NDArray[Any]) -> float:
    """Of `counts`."""
    hits, of = found.sum(axis=0)
    return float(hits / of)


def lead(ours: NDArray[Any], its: NDArray[Any]) -> str:
    """By how much `ours` is ahead, and between what it lies in draws of as many rows with replacement (the bootstrap)."""
    random, rows = np.random.default_rng(0), len(ours)
    draws = [random.integers(0, rows, rows) for _ in range(_DRAWS)]
    low, high = np.quantile([score(ours[draw]) - score(its[draw]) for draw in draws], _INTERVAL)
    return f"; the bundle {score(ours):.4f}, ahead by {score(ours) - score(its):.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()
