"""How a dependency that is away is waited for."""

import threading
import time

import pytest

from consumer import patience
from consumer.errors import DependencyUnavailable, TransactionAborted
from consumer.health import Health
from consumer.patience import Patience
from consumer.telemetry import Metrics
from tests.fakes import Failures, away


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S_FIRST", 0.001)
    monkeypatch.setattr(patience, "RETRY_S_MAX", 0.004)


class Asked:
    """A call that fails as often as it is told to, and what was seen of the health meanwhile."""

    def __init__(self, *errors: Exception) -> None:
        self.metrics = Metrics()
        self.health = Health(stall_seconds=60, conditions=())
        self.patience = Patience(metrics=self.metrics, health=self.health)
        self.failures = Failures()
        self.failures.next(*errors)
        self.calls = 0
        self.waiting: list[dict[str, str]] = []

    def call(self) -> str:
        self.calls += 1
        self.failures.raise_next()
        return "answer"

    def look(self) -> None:
        self.waiting.append(self.health.ready().reasons)


@pytest.fixture
def away_twice() -> Asked:
    return Asked(*away("redis", 2))


def test_an_answer_is_returned_at_once() -> None:
    """A dependency that answers is asked once."""
    asked = Asked()
    assert (asked.patience.ask(asked.call, between=asked.look), asked.calls, asked.waiting) == ("answer", 1, [])


def test_a_call_is_repeated_until_it_is_answered(away_twice: Asked) -> None:
    """A dependency that is away is asked again; meanwhile the service is not ready and says what it waits for."""
    assert away_twice.patience.ask(away_twice.call, between=away_twice.look) == "answer"
    assert (away_twice.calls, away_twice.waiting) == (3, [{"redis": "waited for"}] * 2)
    assert away_twice.health.ready().ok
    waits = away_twice.metrics.registry.get_sample_value("enricher_dependency_waits_total", {"dependency": "redis"})
    assert waits == 2


def test_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time between two tries doubles up to a limit."""
    asked = Asked(*away("redis", 6))
    waits: list[float | None] = []
    monkeypatch.setattr(asked.patience._given_up, "wait", waits.append)
    asked.patience.ask(asked.call)
    assert waits == [0.001, 0.002, 0.004, 0.004, 0.004, 0.004]


def test_another_error_ends_the_wait() -> None:
    """An error that is no absence is raised at once, and nothing is waited for any more."""
    asked = Asked(*away("redis"), ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        asked.patience.ask(asked.call)
    assert asked.health.ready().ok


def test_what_is_done_between_may_end_the_wait(away_twice: Asked) -> None:
    """An error raised between two tries ends the wait, and nothing is waited for any more."""

    def abort() -> None:
        raise TransactionAborted("partitions went")

    with pytest.raises(TransactionAborted):
        away_twice.patience.ask(away_twice.call, between=abort)
    assert (away_twice.calls, away_twice.health.ready().ok) == (1, True)


def test_giving_up_ends_every_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `give_up` the first failure is raised, also to those who wait at that moment."""
    monkeypatch.setattr(patience, "RETRY_S_FIRST", 30.0)
    asked = Asked(*away("redis", 9))
    caught: list[DependencyUnavailable] = []

    def ask() -> None:
        try:
            asked.patience.ask(asked.call)
        except DependencyUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    deadline_s = time.monotonic() + 5
    while not asked.calls and time.monotonic() < deadline_s:
        time.sleep(0.001)
    asked.patience.give_up()
    thread.join(timeout=5)
    assert (len(caught), asked.calls) == (1, 2)
    with pytest.raises(DependencyUnavailable):
        asked.patience.ask(asked.call)


def test_an_answer_is_taken_after_giving_up() -> None:
    """`give_up` does not keep a call from being answered."""
    asked = Asked()
    asked.patience.give_up()
    assert asked.patience.ask(asked.call) == "answer"
