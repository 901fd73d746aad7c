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
from model.cover_teacher import TEACHER_WIDTH, seen_by_teacher  # noqa: E402
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


def first_covers(rows: Rows, count: int) -> Rows:
    """The rows, of which only the first have a cover: the teacher takes its time with each."""
    cover_of = np.where(np.arange(len(rows)) < count, rows.cover_of, -1)
    return dataclasses.replace(rows, covers=rows.covers[:count], cover_of=cover_of)


def a_network(tasks: list[Task]) -> Network:
    torch.manual_seed(0)
    return Network(Shape(16, 8, 8, 8, cover_channels=1, heads={task.name: task.width for task in tasks}), dropout=0.0)


def test_covers_learn_to_stand_alone_and_a_task_takes_of_them_what_helps(shop_of_covers: tuple[Rows, list[Task]]) -> None:
    """Where the cover tells the subject and the text nothing, the subject takes from the cover, and is right."""
    rows, tasks = shop_of_covers
    labels = [labels_of(task, rows) for task in tasks]
    network = a_network(tasks)
    torch.nn.init.zeros_(network.wide.weight)
    learn_covers(network, rows, labels, tasks, epochs=30, seed=0, index=np.arange(len(rows)), teacher=False)
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
    rows, tasks = first_covers(shop_of_covers[0], 40), shop_of_covers[1]
    labels, index = [labels_of(task, rows) for task in tasks], np.arange(40)
    kept = Checkpoints(tmp_path / "kept", {})
    first, second = a_network(tasks), a_network(tasks)
    learn_covers(first, rows, labels, tasks, epochs=2, seed=0, index=index, teacher=True, checkpoints=kept)
    drawn = torch.rand(3)
    learn_covers(second, rows, labels, tasks, epochs=10_000, seed=0, index=index, teacher=True, checkpoints=kept)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(cover_features(first, rows.covers), cover_features(second, rows.covers))


def test_what_the_teacher_saw_is_not_asked_again(
    shop_of_covers: tuple[Rows, list[Task]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was interrupted while the branch learned has the same branch in the end, without the teacher."""
    rows, tasks = first_covers(shop_of_covers[0], 40), shop_of_covers[1]
    labels, index = [labels_of(task, rows) for task in tasks], np.arange(40)
    kept = Checkpoints(tmp_path / "kept", {})
    first = a_network(tasks)
    learn_covers(first, rows, labels, tasks, epochs=2, seed=0, index=index, teacher=True, checkpoints=kept)
    (tmp_path / "kept" / "covers.pt").unlink()
    monkeypatch.setattr("model.cover_start.seen_by_teacher", lambda covers: pytest.fail("the teacher was asked again"))
    second = a_network(tasks)  # begins to draw where the first did
    learn_covers(second, rows, labels, tasks, epochs=2, seed=0, index=index, teacher=True, checkpoints=kept)
    assert torch.equal(cover_features(first, rows.covers), cover_features(second, rows.covers))


def test_the_branch_learns_what_the_teacher_sees(shop_of_covers: tuple[Rows, list[Task]]) -> None:
    """From covers that have no label at all, so that nothing else is there to learn from."""
    rows, tasks = shop_of_covers
    random = np.random.default_rng(0)
    covers = (random.integers(0, 2, (len(rows), 1, 4, 4)) * 255).astype(np.uint8).repeat(16, axis=2).repeat(16, axis=3)
    rows = first_covers(dataclasses.replace(rows, covers=covers), 120)
    covers = rows.covers
    labels = [labels_of(task, rows) for task in tasks]
    bare = [dataclasses.replace(own, present=np.zeros_like(own.present)) for own in labels]
    target = seen_by_teacher(covers)
    left = {}
    for teacher in (False, True):
        network = a_network(tasks)
        learn_covers(network, rows, bare, tasks, epochs=40, seed=0, index=np.arange(len(rows)), teacher=teacher)
        features = cover_features(network, covers).double()
        features -= features.mean(dim=0)
        read = torch.linalg.lstsq(features.T @ features + 0.1 * torch.eye(features.shape[1]), features.T @ target.double())
        left[teacher] = float((features @ read.solution - target).pow(2).mean())
    assert left[True] < 0.9 * left[False], left


def test_without_covers_the_branch_says_nothing(shop_of_covers: tuple[Rows, list[Task]]) -> None:
    """A shop that has no covers trains all the same, and a cover that comes later changes no answer by itself."""
    rows, tasks = shop_of_covers
    none = dataclasses.replace(rows, covers=rows.covers[:0], cover_of=np.full(len(rows), -1))
    network = a_network(tasks)
    labels = [labels_of(task, none) for task in tasks]
    learn_covers(network, none, labels, tasks, epochs=5, seed=0, index=np.arange(len(none)), teacher=True)
    assert not network.cover_head(cover_features(network, rows.covers)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_teacher_sees_alike_covers_alike(channels: int) -> None:
    """Numbers of one scale for grey covers and coloured ones; covers that all look alike tell nothing, rather than noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (70, channels, 4, 3)).astype(np.uint8)
    covers = coarse.repeat(16, axis=2).repeat(16, axis=3)
    covers[69] = covers[0]
    seen = seen_by_teacher(covers)
    assert seen.shape == (70, TEACHER_WIDTH)
    assert torch.allclose(seen[0], seen[69], atol=1e-3)
    assert not torch.allclose(seen[0], seen[1], atol=0.1)
    varying = seen.abs().sum(dim=0) > 0
    assert varying.float().mean() > 0.3
    assert torch.allclose(seen[:, varying].std(dim=0, correction=0), torch.ones(int(varying.sum())), atol=1e-3)
    assert not seen_by_teacher(covers[:1].repeat(3, axis=0)).any()
