"""Failpoints do what the variable says at the hit that it names, and nothing where it says nothing."""

import os
import subprocess
import sys
import time

import pytest

from consumer import failpoints
from consumer.errors import SettingsError, TransactionAborted
from tests.faults.replicas import KILLED
from tests.journey.running import ROOT


def test_nothing_is_armed_without_the_variable() -> None:
    """A service started as it is in production has no failpoint; reaching one does nothing."""
    assert failpoints.armed(None) is None
    assert failpoints.armed("") is None
    failpoints.reached("after_store")


def test_a_sleep_happens_at_its_hit_only() -> None:
    """The second time, and no other, at this point, and no other."""
    armed = failpoints.armed("after_store:sleep=0.2:2")
    assert armed is not None
    took_s = []
    for name in ("after_store", "after_poll", "after_store", "after_store"):
        begun_s = time.monotonic()
        armed.reached(name)
        took_s.append(time.monotonic() - begun_s)
    assert [seconds >= 0.2 for seconds in took_s] == [False, False, True, False]


def test_a_kill_ends_the_process_at_its_hit() -> None:
    """SIGKILL at the third time: what comes before is done, what comes after is not."""
    code = "from consumer.failpoints import reached\nfor n in range(5):\n    print(n, flush=True)\n    reached('after_store')"
    environment = {**os.environ, failpoints.VARIABLE: "after_store:kill:3"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == KILLED
    assert [line for line in ended.stdout.splitlines() if line.isdigit()] == ["0", "1", "2"]


def test_an_abort_happens_at_its_hit_only() -> None:
    """What a broker would say that refuses the commit, once."""
    armed = failpoints.armed("before_commit:abort:2")
    assert armed is not None
    armed.reached("before_commit")
    with pytest.raises(TransactionAborted, match="before_commit"):
        armed.reached("before_commit")
    armed.reached("before_commit")


@pytest.mark.parametrize(
    "text",
    [
        "after_store",
        "nowhere:kill:1",
        "after_store:burn:1",
        "after_store:kill:x",
        "after_store:sleep=x:1",
        "after_store:sleep:1",
        "after_store:kill=1:1",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    """A test that misspells a point must not pass because nothing happened."""
    with pytest.raises(SettingsError, match="expected POINT:kill:HIT"):
        failpoints.armed(text)
