"""The proof of the proofs: without a protection, the test that is made for it fails."""

import time
from collections import Counter

import pytest

from tests.faults.checker import check
from tests.faults.history import answered, collect, wait_for_all_answers
from tests.faults.load import Load
from tests.faults.replicas import KILLED, Replica
from tests.faults.test_dependencies import aborted_answers, goes_on
from tests.faults.test_rebalances import freeze
from tests.journey.running import Surroundings, wait_until

pytestmark = pytest.mark.integration


def found_at_the_end(surroundings: Surroundings, load: Load, *, mutation: str = "") -> Counter[str]:
    """What the checker finds once a last replica (sound, or the mutant again) has answered the rest."""
    load.stop()
    with Replica(surroundings, mutation=mutation) as last:
        last.wait_assigned()
        wait_for_all_answers(surroundings)
        last.terminate()
    found = Counter(violation.kind for violation in check(collect(surroundings)))
    print(f"\n{dict(found)}")
    return found


@pytest.mark.long_form
def test_without_fencing_a_zombie_doubles_answers(surroundings: Surroundings, load: Load) -> None:
    """Offsets without the group's generation: the frozen member's transaction is committed after its heir's."""
    freeze(surroundings, "before_commit", mutation="no_fencing")
    assert found_at_the_end(surroundings, load)["doubled"] > 0


def test_without_the_guard_late_versions_win(surroundings: Surroundings, load: Load) -> None:
    """The store takes every write: no fault is needed for the topic to go back."""
    with Replica(surroundings, mutation="no_guard") as mutant:
        mutant.wait_assigned()
        wait_until(lambda: answered(surroundings) > 200, "answers with late versions among them")
        mutant.terminate()
    found = found_at_the_end(surroundings, load, mutation="no_guard")
    assert found["went back"] > 0
    assert found["store is older"] > 0


def test_without_a_transaction_a_kill_doubles_answers(surroundings: Surroundings, load: Load) -> None:
    """Answers are on the broker, their offsets are not: whoever takes over answers again."""
    with Replica(surroundings, failpoint="before_commit:sleep=1:3,before_commit:kill:3", mutation="no_transaction") as mutant:
        assert mutant.wait() == KILLED
    assert found_at_the_end(surroundings, load)["doubled"] > 0


@pytest.mark.long_form
def test_without_the_drain_begun_answers_are_thrown_away(surroundings: Surroundings, load: Load) -> None:
    """SIGTERM that does not finish what is in flight leaves aborted answers in the topic."""
    with Replica(surroundings, mutation="no_drain", DELIVERY__TRANSACTION_MS="1500") as mutant:
        mutant.wait_assigned()
        goes_on(surroundings, mutant, time.monotonic(), "start")
        time.sleep(0.7)  # in the middle of the next transaction
        assert mutant.terminate() == 0
    load.stop()
    assert aborted_answers(surroundings) > 0


@pytest.mark.long_form
def test_a_store_that_is_written_after_the_topic_trails_it_after_a_kill(surroundings: Surroundings, load: Load) -> None:
    """The order of the two matters: killed between topic and store, the store keeps what is older than the topic's last."""
    with Replica(surroundings, failpoint="after_commit:kill:6", mutation="store_last") as mutant:
        assert mutant.wait() == KILLED
    load.stop()
    wanted = check(collect(surroundings))
    assert [one for one in wanted if one.kind in ("store is older", "store differs", "wrong tombstone")]
