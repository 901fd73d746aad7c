"""What training keeps of its own changes."""

import copy
from pathlib import Path

import numpy as np
import pytest

from model.dataset import labels_of, read_rows
from model.features import FeatureSettings
from model.tasks import load_task_file, resolve
from tests.model.examples import TASK_FILE, a_shop_folder

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model import metrics  # noqa: E402 - after the check that torch is there
from model.batches import BLOCKS, Examples, Order  # noqa: E402
from model.fit import _drawn_back, task_logits  # noqa: E402
from model.network import Network, Shape  # noqa: E402

pytestmark = pytest.mark.torch


def test_each_task_keeps_the_share_of_its_change_that_is_best_on_valid(tmp_path: Path) -> None:
    """A change that helps is kept whole, one that harms goes back as far as may be, and the logits are those in between."""
    folder = a_shop_folder(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TASK_FILE, encoding="utf-8")
    rows = read_rows([folder], part="valid", settings=FeatureSettings())
    tasks = [resolve(entry, rows.by_set()) for entry in load_task_file(path).task]
    labels = [labels_of(task, rows) for task in tasks]
    random = np.random.default_rng(0)
    # The text of a row is its subject and nothing else.
    place = next(at for at, task in enumerate(tasks) if task.name == "subject")
    sums = torch.zeros(len(rows), BLOCKS, 8, dtype=torch.float16)
    sums[torch.arange(len(rows)), 0, torch.from_numpy(labels[place].values)] = 1.0
    order = Order(torch.rand(len(rows), 4, 96, dtype=torch.float16), torch.zeros(96))
    valid = Examples.of(rows, sums, labels, covers=torch.zeros(len(rows.covers), 96), order=order)
    heads = {task.name: task.width for task in tasks}
    torch.manual_seed(0)
    start = Network(
        Shape(16, 8, 8, 8, cover_channels=1, heads=heads, ordered=frozenset({"subject"}), ordered_words=3), dropout=0.0
    )
    trained = copy.deepcopy(start)
    borders = np.cumsum([0, *heads.values()])
    first, end = borders[place], borders[place + 1]
    with torch.no_grad():
        trained.wide.weight += torch.from_numpy(random.normal(size=trained.wide.weight.shape)).float()
        start.wide.weight[first:end] = 0.0
        trained.wide.weight[first:end] = torch.eye(8)[: end - first]
        harmed = next(at for at, task in enumerate(tasks) if task.name == "page_count")
        for at in range(len(tasks)):
            for weight in trained.deep.of_task(at):
                weight.add_(float(at != harmed))
        # Pages by subject before, the same upside down after.
        pages = [labels[harmed].values[labels[place].values == each].mean() for each in range(end - first)]
        start.wide.weight[borders[harmed], : end - first] = torch.tensor(pages) - float(np.mean(pages))
        trained.wide.weight[borders[harmed]] = -start.wide.weight[borders[harmed]]
    before, after = task_logits(start, valid, tasks), task_logits(trained, valid, tasks)
    shares = _drawn_back(trained, start, valid, tasks)
    now = task_logits(trained, valid, tasks)
    assert shares["subject"] == 1.0
    assert metrics.score("single", now["subject"], labels[place].values)[1] == 1.0
    assert shares["page_count"] < 1.0
    for task in tasks:
        between = before[task.name] + np.float32(shares[task.name]) * (after[task.name] - before[task.name])
        np.testing.assert_allclose(now[task.name], between, atol=1e-4)
    truth = labels[harmed].values
    assert metrics.score("regression", now["page_count"], truth)[1] > metrics.score("regression", after["page_count"], truth)[1]
