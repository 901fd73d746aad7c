"""Members come and go, freeze and wake up: each record is answered by one of them."""

import random
from contextlib import ExitStack

import pytest

from tests.faults.conftest import QUICK, rounds
from tests.faults.history import prove
from tests.faults.load import Load, pause_between
from tests.faults.replicas import KILLED, Replica
from tests.faults.watcher import Watcher
from tests.journey.running import Surroundings

pytestmark = pytest.mark.integration

REPLICAS_MAX = 3
CHANGES = {"classic": 6, "consumer": 4}  # in the short form


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_rebalance_storm_loses_and_doubles_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, seed: int, protocol: str
) -> None:
    """Replicas join and leave under load, in the classic and in the new group protocol; each leaves with 0."""
    changes, chance = rounds(CHANGES[protocol], per_round=2), random.Random(seed)
    overrides = {"KAFKA__GROUP_PROTOCOL": protocol}
    if protocol == "consumer":  # the session's length is the broker's to say
        overrides["KAFKA__PROPERTIES"] = '{"transaction.timeout.ms": 5000}'
    with ExitStack() as stack:
        members = [stack.enter_context(Replica(surroundings, **overrides)).wait_assigned()]
        for _ in range(changes):
            if len(members) == 1 or (len(members) < REPLICAS_MAX and chance.random() < 0.5):
                members.append(stack.enter_context(Replica(surroundings, **overrides)).wait_assigned())
            else:
                assert members.pop(chance.randrange(len(members))).terminate(deadline_s=30) == 0
            pause_between(chance, 0.0, 1.0)
        prove(surroundings, load, f"{changes} members joined or left ({protocol}), seed {seed}")
        for member in members:
            assert member.terminate(deadline_s=30) == 0


def test_a_kill_while_partitions_are_given_up_loses_and_doubles_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher
) -> None:
    """A member dies when it is asked to give partitions to a newcomer, before it committed what it had answered."""
    kills = rounds(1)
    for _ in range(kills):
        with Replica(surroundings, failpoint="before_revoked:kill:1", DELIVERY__TRANSACTION_MS="1000") as giver:
            giver.wait_assigned()
            with Replica(surroundings) as taker:
                assert giver.wait() == KILLED
                taker.wait_assigned()
                assert taker.terminate() == 0
    with Replica(surroundings) as last:
        last.wait_assigned()
        prove(surroundings, load, f"{kills} kills at before_revoked")
        assert last.terminate() == 0


LONG = pytest.mark.long_form


@pytest.mark.parametrize(
    "point", [pytest.param("before_commit", marks=LONG), "after_offsets", pytest.param("after_store", marks=LONG)]
)
def test_a_member_that_was_frozen_and_replaced_changes_neither_topic(
    surroundings: Surroundings, load: Load, watcher: Watcher, point: str
) -> None:
    """A zombie: frozen for longer than its session just before it would write, it wakes up when another has its partitions.

    What it had open is refused by the broker, because its group generation is old; what it still writes to Redis is refused by
    the guard, or equal. It rejoins, or ends with 1 for its orchestrator to restart.
    """
    freeze(surroundings, point, mutation="")
    prove_after_freeze(surroundings, load, point)


def freeze(surroundings: Surroundings, point: str, *, mutation: str) -> None:
    """A replica is frozen at `point` until another one has answered what it was about to answer; then it wakes up."""
    # Its transaction outlives the freeze: what refuses it must be the generation, not the transaction's time-out.
    patient = QUICK.replace('"transaction.timeout.ms": 5000', '"transaction.timeout.ms": 30000')
    with Replica(surroundings, failpoint=f"{point}:sleep=1:3", mutation=mutation, KAFKA__PROPERTIES=patient) as zombie:
        zombie.wait_logged('"failpoint"')
        zombie.freeze()
        with Replica(surroundings) as heir:
            heir.wait_assigned()
            pause_between(random.Random(0), 2.0, 2.0)
            zombie.thaw()
            pause_between(random.Random(0), 4.0, 4.0)
            assert heir.terminate() == 0
        if zombie.is_running():
            assert zombie.terminate() in (0, 1)


def prove_after_freeze(surroundings: Surroundings, load: Load, point: str) -> None:
    """All is answered by a fresh replica; the checker looks."""
    with Replica(surroundings) as last:
        last.wait_assigned()
        prove(surroundings, load, f"1 zombie at {point}")
        assert last.terminate() == 0
