"""How good on rows that nothing was settled on: `python -m tests.benchmarks.unseen`, about 20 minutes.

`valid` chooses how much of its change each task keeps, what it takes of a cover, temperatures and thresholds, so figures on it
flatter a little. Here a seventh of the training rows is kept out of everything: the whole recipe learns from the others, chooses
on `valid`, and is judged on the seventh as the service would ask it, beside TF-IDF with one LinearSVC a label that learned from
the same rows. Not what ships, which learns from more rows; but what to choose between two recipes by. Titles that begin alike
are kept out together, as the data's own parts are: else the issues of a journal are judged by models that know the others.

Keeping out one of the training's own folds instead would mislead: the tables of the other folds have seen its labels, and what
the network learns on top of them is drawn away from these.
"""

import argparse
import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.baseline import baseline
from model.checkpoint import Checkpoints
from model.dataset import UNLABELLED, Rows, folds_by_beginning, folds_by_title, read_rows
from model.evaluate import evaluate, open_session
from model.export import export_graph
from model.features import FeatureExtractor
from model.prepare import modelled, part_of
from model.tasks import TaskFile, load_task_file
from model.train import Outcome, identity_of, learned, refitted

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SETS = ("bookdepository", "douban-zh", "goodreads", "gutenberg")
PARTS = 7  # of the training rows
_SHOWN = ("accuracy", "any_hit", "micro_f1", "band_accuracy", "mae", "ece", "ece_by_chance")

Figures = dict[str, dict[str, float]]


def main() -> None:
    arguments = asked(__doc__, kept=ROOT / "runs" / ".unseen")
    torch.set_num_threads(2)
    task_file = load_task_file(arguments.tasks)
    _, valid, held, others = parts_of_data(task_file)
    outcome = learned(others, valid, task_file, seed=arguments.seed, unfinished=arguments.kept, progress=print)
    bare = dataclasses.replace(held, cover_of=np.full(len(held), UNLABELLED))
    found = {
        "ours": judged(outcome, held, task_file),
        "without covers": judged(outcome, bare, task_file),
        "refit": judged(refitted(outcome, task_file, progress=print), held, task_file),
        "SVM": compared(outcome, held, task_file, kept=arguments.kept),
    }
    show(found, title=f"{len(held)} rows that nothing was settled on")


def asked(description: str | None, *, kept: Path) -> argparse.Namespace:
    """The command line: the task file, where linear models are kept, the seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, default=ROOT / "model" / "books.toml")
    parser.add_argument("--kept", type=Path, default=kept, help="a folder that keeps the linear models")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def parts_of_data(task_file: TaskFile) -> tuple[Rows, Rows, Rows, Rows]:
    """`train`, `valid`, the seventh of `train` that is kept out, and the rest of it."""
    train, valid = (
        read_rows([DATA / name for name in SETS], part=part, settings=task_file.features) for part in ("train", "valid")
    )
    part = folds_by_beginning(train.listings, folds=PARTS)
    return train, valid, some_of(train, np.flatnonzero(part == 0)), some_of(train, np.flatnonzero(part != 0))


def some_of(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """The rows at `index`."""
    return dataclasses.replace(
        rows,
        values=[rows.values[row] for row in index],
        listings=[rows.listings[row] for row in index],
        sets=[rows.sets[row] for row in index],
        cover_of=rows.cover_of[index],
        fingerprint=hashlib.sha256(rows.fingerprint.encode() + index.tobytes()).hexdigest(),
    )


def judged(outcome: Outcome, held: Rows, task_file: TaskFile) -> Figures:
    """What was learned, from the graph as it would ship."""
    found = evaluate(*served(outcome, task_file), held, outcome.tasks, outcome.specs())
    return {each.name: each.metrics for each in found}


def served(outcome: Outcome, task_file: TaskFile) -> tuple[onnxruntime.InferenceSession, FeatureExtractor]:
    """The graph and the extractor as they would ship."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        names = [*(task.name for task in outcome.tasks), "embedding"]
        export_graph(outcome.graph, path, settings=task_file.features, output_names=names)
        return open_session(path), FeatureExtractor(task_file.features, outcome.vocabulary)


def compared(outcome: Outcome, held: Rows, task_file: TaskFile, *, kept: Path) -> Figures:
    """The SVMs of the same training, which it has kept."""
    folds = folds_by_title(outcome.train.listings, folds=task_file.training.folds)
    checkpoints = Checkpoints(kept, identity_of(task_file, outcome.train, outcome.valid, limit=None))
    whole = modelled(task_file, outcome.tasks, outcome.train, folds=folds, checkpoints=checkpoints, progress=print)
    unseen = part_of(held, FeatureExtractor(task_file.features, whole.vocabulary), outcome.tasks)
    return baseline(whole.models, outcome.tasks, held, unseen.tokens, unseen.labels)


def show(found: Mapping[str, Figures], *, title: str) -> None:
    """One column for each of `found`, and the rows of the first."""
    table = Table("task", "metric", *found, title=title)
    for name, figures in next(iter(found.values())).items():
        for metric in _SHOWN:
            if metric in figures:
                shown = [each.get(name, {}).get(metric) for each in found.values()]
                table.add_row(name, metric, *("" if each is None else f"{each:.4f}" for each in shown))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
