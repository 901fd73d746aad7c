"""An interrupted training goes on where it was, and another one never takes up its state."""

from pathlib import Path
from typing import Any

import pytest

from model.tasks import load_task_file

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model import fit as fitting  # noqa: E402 - after the check that torch is there
from model.checkpoint import Checkpoints  # noqa: E402
from model.train import train_graph  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_state_comes_back_for_the_same_training_only(tmp_path: Path) -> None:
    """Other data or settings make another key, for which there is no state."""
    first = Checkpoints(tmp_path / "states", {"data": "abc", "seed": 1})
    assert first.load("fit") is None
    first.save("fit", {"table": torch.ones(2), "epochs_done": 3})
    state = Checkpoints(tmp_path / "states", {"seed": 1, "data": "abc"}).load("fit")
    assert state is not None
    assert state["epochs_done"] == 3
    assert torch.equal(state["table"], torch.ones(2))
    assert Checkpoints(tmp_path / "states", {"data": "abc", "seed": 2}).load("fit") is None


def test_a_truncated_state_counts_as_none(tmp_path: Path) -> None:
    """What a full disk left is not loaded."""
    states = Checkpoints(tmp_path, {})
    states.save("fit", {"table": torch.ones(100)})
    path = tmp_path / "fit.pt"
    path.write_bytes(path.read_bytes()[:200])
    assert states.load("fit") is None


def test_nothing_is_left_once_removed(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path / "states", {})
    states.save("fit", {"n": 1})
    states.remove()
    assert not (tmp_path / "states").exists()


@pytest.mark.parametrize("cover_epochs", [0, 30])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    shop: Path, task_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cover_epochs: int
) -> None:
    """Stopped after its second epoch and started again, it does two more and ends where an undisturbed one does."""
    task_file = load_task_file(task_path)
    settings = task_file.training.model_copy(update={"epochs": 4, "cover_epochs": cover_epochs})
    task_file = task_file.model_copy(update={"training": settings})
    undisturbed = train_graph([shop], task_file, seed=1)
    save = Checkpoints.save
    epochs: list[int] = []
    epoch_of = fitting._epoch

    def save_then_stop(self: Checkpoints, name: str, state: Any) -> None:
        save(self, name, state)
        if name == "fit" and state["epochs_done"] == 2:
            raise KeyboardInterrupt

    def counted(*args: Any, epoch: int, **more: Any) -> float:
        epochs.append(epoch)
        return epoch_of(*args, epoch=epoch, **more)

    monkeypatch.setattr(Checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_graph([shop], task_file, seed=1, unfinished=tmp_path / "states")
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(fitting, "_epoch", counted)
    resumed = train_graph([shop], task_file, seed=1, unfinished=tmp_path / "states")
    assert epochs == [3, 4]
    for one, other in zip(resumed.trained.network.parameters(), undisturbed.trained.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.trained.curves == undisturbed.trained.curves
