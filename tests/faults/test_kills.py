"""A process that is killed loses nothing and doubles nothing, wherever the kill meets it."""

import random
from contextlib import ExitStack

import pytest

from consumer.failpoints import POINTS
from tests.faults.conftest import rounds
from tests.faults.history import prove
from tests.faults.load import Load, pause_between
from tests.faults.replicas import KILLED, Replica
from tests.faults.watcher import Watcher
from tests.journey.running import Surroundings

pytestmark = pytest.mark.integration

STEPS = {
    "reading": ("after_poll", "after_prepare", "after_predict"),
    "writing": ("before_store", "after_store", "after_produce"),
    "committing": ("before_commit", "after_offsets", "after_commit"),
}


def test_every_failpoint_has_its_kill() -> None:
    """No point between two steps is forgotten; `before_revoked` is met by `test_rebalances.py`."""
    assert {point for points in STEPS.values() for point in points} | {"before_revoked"} == set(POINTS)


@pytest.mark.parametrize("steps", STEPS)
def test_a_kill_between_two_steps_loses_and_doubles_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, steps: str
) -> None:
    """Two replicas kill themselves at the same point, early and later; a third goes on; then the next point."""
    count = rounds(1)
    kills = dict.fromkeys(STEPS[steps], 0)
    with Replica(surroundings) as last:
        for point in STEPS[steps] * count:
            with ExitStack() as stack:
                pair = [stack.enter_context(Replica(surroundings, failpoint=f"{point}:kill:{hit}")) for hit in (2, 5)]
                kills[point] += sum(replica.wait() == KILLED for replica in pair)
        prove(surroundings, load, f"kills at {kills}")
        assert last.terminate() == 0
    assert set(kills.values()) == {2 * count}


@pytest.mark.short_form
def test_kills_at_random_moments_lose_and_double_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, seed: int
) -> None:
    """Two replicas, one of which is killed again and again while updates and deletions flow; the checker is content."""
    kills, chance = rounds(6, per_round=10), random.Random(seed)
    with ExitStack() as stack:
        replicas = [stack.enter_context(Replica(surroundings)) for _ in range(2)]
        for replica in replicas:
            replica.wait_assigned()
        for _ in range(kills):
            pause_between(chance, 0.2, 1.5)
            victim = chance.randrange(2)
            replicas[victim].kill()
            replicas[victim] = stack.enter_context(Replica(surroundings))
            if chance.random() < 0.6:  # else the next kill may meet it while it starts or joins
                replicas[victim].wait_assigned()
        prove(surroundings, load, f"{kills} kills at random, seed {seed}")
        for replica in replicas:
            assert replica.terminate() == 0
