"""What the cover branch learns before it joins the text."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import Checkpoints
from model.dataset import Rows, labels_of, read_rows
from model.features import FeatureSettings
from model.tasks import Task, load_task_file, resolve
from tests.model.examples import TASK_FILE, a_shop_folder

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.batches import BLOCKS, Examples  # noqa: E402 - after the check that torch is there
from model.cover_start import cover_features, learn_covers  # noqa: E402
from model.fit import _covers_joined, task_logits  # noqa: E402
from model.network import Network, Shape  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def shop_of_covers(tmp_path: Path) -> tuple[Rows, list[Task]]:
    """A shop whose covers are as light as their subject's number, and a network's tasks."""
    folder = a_shop_folder(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TASK_FILE, encoding="utf-8")
    rows = read_rows([folder], part="train", settings=FeatureSettings())
    tasks = [resolve(entry, rows.by_set()) for entry in load_task_file(path).task]
    subject = labels_of(tasks[0], rows).values
    assert tasks[0].name == "subject"
    stripes = np.zeros((len(rows), 1, 64, 64), dtype=np.uint8)
    for cover, label in zip(stripes, subject, strict=True):
        cover[:, :: label + 2] = 255
    return dataclasses.replace(rows, covers=stripes, cover_of=np.arange(len(rows))), tasks


def a_network(tasks: list[Task]) -> Network:
    torch.manual_seed(0)
    return Network(Shape(16, 8, 8, 8, cover_channels=1, heads={task.name: task.width for task in tasks}), dropout=0.0)


def test_covers_learn_to_stand_alone_and_a_task_takes_of_them_what_helps(shop_of_covers: tuple[Rows, list[Task]]) -> None:
    """Where the cover tells the subject and the text nothing, the subject takes from the cover, and is right."""
    rows, tasks = shop_of_covers
    labels = [labels_of(task, rows) for task in tasks]
    network = a_network(tasks)
    torch.nn.init.zeros_(network.wide.weight)
    learn_covers(network, rows, labels, tasks, epochs=30, seed=0, index=np.arange(len(rows)))
    said = network.cover_head(cover_features(network, rows.covers))
    assert said.mean(dim=0).abs().max() < 1e-4  # that there is a cover tells nothing
    assert said.std(dim=0)[: tasks[0].width].min() > 0.1
    assert not any(each.requires_grad for each in network.cover_branch.parameters())
    sums = torch.zeros(len(rows), BLOCKS, 8, dtype=torch.float16)
    examples = Examples.of(rows, sums, labels, covers=cover_features(network, rows.covers))
    before = task_logits(network, examples, tasks)["subject"]
    shares = _covers_joined(network, examples, tasks)
    after = task_logits(network, examples, tasks)["subject"]
    assert shares["subject"] > 0
    assert (after.argmax(axis=1) == labels[0].values).mean() > 0.9 > (before.argmax(axis=1) == labels[0].values).mean()


def test_what_was_learned_of_covers_is_taken_up_again(shop_of_covers: tuple[Rows, list[Task]], tmp_path: Path) -> None:
    """An interrupted training does not look at every cover anew, has the same branch, and draws on as it would have."""
    rows, tasks = shop_of_covers
    labels, index = [labels_of(task, rows) for task in tasks], np.arange(40)
    kept = Checkpoints(tmp_path / "kept", {})
    first, second = a_network(tasks), a_network(tasks)
    learn_covers(first, rows, labels, tasks, epochs=2, seed=0, index=index, checkpoints=kept)
    drawn = torch.rand(3)
    learn_covers(second, rows, labels, tasks, epochs=10_000, seed=0, index=index, checkpoints=kept)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(cover_features(first, rows.covers), cover_features(second, rows.covers))


def test_without_covers_the_branch_says_nothing(shop_of_covers: tuple[Rows, list[Task]]) -> None:
    """A shop that has no covers trains all the same, and a cover that comes later changes no answer by itself."""
    rows, tasks = shop_of_covers
    none = dataclasses.replace(rows, covers=rows.covers[:0], cover_of=np.full(len(rows), -1))
    network = a_network(tasks)
    learn_covers(network, none, [labels_of(task, none) for task in tasks], tasks, epochs=5, seed=0, index=np.arange(len(none)))
    assert not network.cover_head(cover_features(network, rows.covers)).any()
