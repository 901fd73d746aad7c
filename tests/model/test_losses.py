"""Losses and how they are added up."""

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.losses import Weighing, squared_earth_movers_distance  # noqa: E402 - after the check that torch is there

pytestmark = pytest.mark.torch


def test_the_ordinal_loss_grows_with_the_distance() -> None:
    """A guess one band off costs less than one two bands off; other currencies do not matter."""
    logits = torch.zeros(3, 5)
    logits[0, 0] = logits[1, 1] = logits[2, 2] = 20.0
    truth = torch.zeros(3, dtype=torch.int64)
    near, middle, far = squared_earth_movers_distance(logits, truth, groups=[(0, 3), (3, 5)]).tolist()
    assert near == pytest.approx(0, abs=1e-4)
    assert middle == pytest.approx(1, abs=1e-4)
    assert far == pytest.approx(2, abs=1e-4)


def test_famo_weighs_a_task_less_that_progressed_more() -> None:
    """From equal factors, the task whose loss fell by half gets a smaller one than the task whose loss stood still."""
    weighing = Weighing("famo", ["fast", "slow", "absent"])
    weighing.learn({"fast": torch.tensor(2.0), "slow": torch.tensor(2.0)}, {"fast": torch.tensor(1.0), "slow": torch.tensor(2.0)})
    fast, slow, absent = weighing.scores.tolist()
    assert fast < absent == 0 < slow
