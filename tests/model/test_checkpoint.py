"""An interrupted training goes on where it was, and another one never takes up its state."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.checkpoint import Checkpoints  # noqa: E402 - after the check that torch is there


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
