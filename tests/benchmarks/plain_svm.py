"""A yardstick of none of our code: TF-IDF of scikit-learn and a LinearSVC, nothing tuned: `python -m tests.benchmarks.plain_svm`.

Title and authors are one text (of Douban's group and topics the publisher, too): words 1-2, characters 2-5 inside words,
sublinear term frequencies. Judged on `valid`, learned from `train`, and on the seventh of `unseen`, learned from the rest of
`train`. A multi-label task has one threshold, the best for the very rows it is judged on. 15 minutes on one core.
"""

import argparse
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from model import metrics
from model.dataset import Rows, labels_of
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
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="of them only these")
    parser.add_argument("--c", type=float, nargs="+", default=[1.0, 0.3], help="of the SVM")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    task_file = load_task_file(ROOT / "model" / "books.toml")
    train, valid, held, others = parts_of_data(task_file)
    tasks = {entry.name: resolve(entry, train.by_set()) for entry in task_file.task}
    for name, own_set, publisher in ASKED:
        if arguments.tasks and name not in arguments.tasks:
            continue
        for where, learned, judged in (("seventh", others, held), ("valid", train, valid)):
            texts, values = of_set(tasks[name], learned, own_set, publisher=publisher)
            asked, truth = of_set(tasks[name], judged, own_set, publisher=publisher)
            matrix, other = vectorised(texts, asked)
            for c in arguments.c:
                score = scored(tasks[name], (matrix, values), (other, truth), c=c)
                print(
                    f"{name:14} {own_set:14} {where:7} C {c:g}: {score:.4f} of {len(truth)} rows, {len(values)} learned",
                    flush=True,
                )


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


def scored(task: Task, learned: tuple[csr_matrix, NDArray[Any]], judged: tuple[csr_matrix, NDArray[Any]], *, c: float) -> float:
    """Accuracy, or for a multi-label task micro-F1."""
    (matrix, values), (other, truth) = learned, judged
    if task.entry.kind != "multi":
        found = LinearSVC(C=c, random_state=0).fit(matrix, values).predict(other)
        return float((found == truth).mean())
    margins = np.full(truth.shape, -9.0)
    for column in np.flatnonzero((values > 0.5).sum(axis=0) > 1):
        margins[:, column] = LinearSVC(C=c, random_state=0).fit(matrix, values[:, column] > 0.5).decision_function(other)
    return max(metrics.micro_f1(margins >= threshold, truth > 0.5) for threshold in _THRESHOLDS)


if __name__ == "__main__":
    main()
