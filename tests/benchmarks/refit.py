"""What the refit that ships gives on rows it has not seen: `python -m tests.benchmarks.refit`, about 45 minutes.

The bundle that ships has a table that learned from `valid`, too, so its own figures there would flatter. Here the recipe learns
from `train` and is settled on `valid`, as `make train` does it; then the table is refitted four times, each time without a
quarter of `valid`, and that quarter is judged. So each row of `valid` is judged by a table that saw all of `train` and three
quarters of `valid`, titles that begin alike apart: a quarter of `valid` less than what ships. Beside it the figures before the
refit. Temperatures, thresholds and shares were settled on `valid` for both.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from model.dataset import Rows, folds_by_beginning, labels_of
from model.evaluate import answers, evaluations
from model.tasks import TaskFile, load_task_file
from model.train import Outcome, learned, refitted
from tests.benchmarks.unseen import ROOT, Figures, asked, judged, parts_of_data, served, show, some_of

QUARTERS = 4


def main() -> None:
    arguments = asked(__doc__, kept=ROOT / "runs" / ".refit")
    torch.set_num_threads(2)
    task_file = load_task_file(arguments.tasks)
    train, valid, _, _ = parts_of_data(task_file)
    outcome = learned(train, valid, task_file, seed=arguments.seed, unfinished=arguments.kept, progress=print)
    found = {"before": judged(outcome, valid, task_file), "refit": crossed(outcome, valid, task_file)}
    show(found, title=f"{len(valid)} rows of valid, each judged by a table that has not seen it")


def crossed(outcome: Outcome, valid: Rows, task_file: TaskFile) -> Figures:
    """The figures on `valid` of refits that each lack a quarter of it, over all quarters together."""
    labels = {task.name: labels_of(task, valid) for task in outcome.tasks}
    quarter = folds_by_beginning(valid.listings, folds=QUARTERS)
    outputs: dict[str, NDArray[np.float32]] = {}
    for each in range(QUARTERS):
        held = some_of(valid, np.flatnonzero(quarter == each))
        others = some_of(valid, np.flatnonzero(quarter != each))
        bare = dataclasses.replace(outcome, valid=others, checkpoints=None)
        graph = served(refitted(bare, task_file, progress=print), task_file)
        own = {task.name: labels_of(task, held) for task in outcome.tasks}
        for name, output in answers(*graph, held, outcome.tasks, own).items():
            present = labels[name].present
            whole = outputs.setdefault(name, np.zeros((int(present.sum()), output.shape[1]), dtype=np.float32))
            whole[quarter[present] == each] = output
    return {each.name: each.metrics for each in evaluations(outputs, valid, outcome.tasks, outcome.specs(), labels)}


if __name__ == "__main__":
    main()
