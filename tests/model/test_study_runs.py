"""What a study says of its runs."""

import math

import numpy as np
import pytest

from model.study_runs import Run, costs, gains


def run(arrangement: str, seed: int, score: float, *, task: str = "genre", scarce: str | None = None, share: float = 1.0) -> Run:
    return Run(
        task=task, arrangement=arrangement, scarce=scarce, share=share, seed=seed, score=score,
        parameters=100 if arrangement == "together" else 80, seconds=3.0, microseconds=2.0, recipe="one",
    )  # fmt: skip


def test_an_interval_of_two_seeds_is_wide() -> None:
    """Gains of 0 and .2: mean .1, and half of Student's interval is 12.7 standard errors of .1."""
    pytest.importorskip("scipy", reason="the train extra is not installed")
    scores = [("together", 0, 0.5), ("together", 1, 0.6), ("alone", 0, 0.5), ("alone", 1, 0.5), ("alone", 2, 0.4)]
    (found,) = gains([run(*each) for each in scores])
    assert found.seeds == 2
    np.testing.assert_allclose((found.together, found.alone, found.gain, found.half_width), (0.55, 0.5, 0.1, 1.27062), rtol=1e-5)


def test_few_labels_stand_apart_from_all() -> None:
    """And one seed has no interval."""
    pytest.importorskip("scipy", reason="the train extra is not installed")
    whole = [run("together", 0, 0.6), run("alone", 0, 0.5)]
    few = [run(name, 0, score, scarce="genre", share=0.05) for name, score in (("together", 0.4), ("alone", 0.2))]
    found = gains(whole + few)
    assert [(each.share, round(each.gain, 6)) for each in found] == [(1.0, 0.2), (0.05, 1.0)]
    assert math.isnan(found[0].half_width)


def test_one_network_for_all_tasks_costs_what_it_costs_once() -> None:
    """However many tasks it has; the others add up."""
    names = ("genre", "topics")
    both = [run(name, seed, 0.5, task=task) for name in ("together", "alone") for seed in (0, 1) for task in names]
    few = [run("alone", 0, 0.2, scarce="genre", share=0.05)]
    together, alone = costs(both + few) or pytest.fail("expected costs")
    assert (together.parameters, alone.parameters, alone.seconds) == (100, 160, 6.0)
