"""Named points between the steps of the pipeline at which a fault test kills or delays the process, or ends its transaction.

`FAILPOINT=after_store:kill:3` makes the process kill itself (SIGKILL) when it comes to `after_store` for the third time;
`FAILPOINT=before_commit:sleep=2.5:1` makes the thread that comes there first sleep, `before_commit:abort:1` is told what a broker
says that refuses the commit. Several are separated by commas and happen in the order given. The variable is read here, once,
when the process starts. It is for tests, no setting, and a service in which one is armed says so in its log. Where none is armed
a point costs a call and a comparison with None, once a batch.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from consumer.errors import SettingsError, TransactionAborted

log = structlog.get_logger(__name__)

VARIABLE = "FAILPOINT"

# In the order in which a batch passes them; each is named after the step that is done, or is about to be.
POINTS = (
    "after_poll",  # records were read, nothing is known of them yet
    "after_prepare",  # decoded, features made
    "after_predict",  # the model answered
    "before_store",  # ours still, breaker closed
    "after_store",  # Redis leads
    "after_produce",  # answers are in the open transaction
    "before_commit",  # the transaction is about to end
    "after_offsets",  # offsets are in the transaction, which is not committed
    "after_commit",  # committed; this process does not know yet
    "before_revoked",  # partitions are being given up
)


@dataclass(frozen=True, slots=True)
class Action:
    """What happens at the `hit`-th time: "kill", "abort" or "sleep"."""

    what: str
    hit: int
    sleep_s: float = 0.0


class Armed:
    """The actions of each point, and how often it was reached. Safe to share between threads."""

    def __init__(self, actions: Mapping[str, list[Action]]) -> None:
        self._actions = actions
        self._hits = dict.fromkeys(actions, 0)
        self._lock = threading.Lock()

    def reached(self, name: str) -> None:
        """Does what is to happen at this point, this time. Raises: TransactionAborted, where that is to happen."""
        if name not in self._actions:
            return
        with self._lock:
            self._hits[name] += 1
            due = [action for action in self._actions[name] if action.hit == self._hits[name]]
        for action in due:
            log.warning("failpoint", name=name, what=action.what, hit=action.hit, sleep_s=action.sleep_s)
            if action.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if action.what == "abort":
                raise TransactionAborted(f"failpoint {name}")
            time.sleep(action.sleep_s)


def armed(text: str | None) -> Armed | None:
    """What the variable says; None when it says nothing.

    Raises:
        SettingsError: it cannot be read.
    """
    if not text:
        return None
    actions: dict[str, list[Action]] = {}
    for part in text.split(","):
        try:
            name, how, hit = part.split(":")
            what, _, seconds = how.partition("=")
            if name not in POINTS or what not in ("kill", "abort", "sleep") or (what == "sleep") != bool(seconds):
                raise ValueError(part)
            actions.setdefault(name, []).append(Action(what, int(hit), float(seconds or 0)))
        except ValueError:
            expected = f"POINT:kill:HIT, POINT:abort:HIT or POINT:sleep=SECONDS:HIT with a point of {', '.join(POINTS)}"
            raise SettingsError(f"{VARIABLE}: expected {expected}; found {part!r}") from None
    log.warning("failpoints_armed", actions=text)
    return Armed(actions)


_armed = armed(os.environ.get(VARIABLE))


def reached(name: str) -> None:
    """The pipeline is at this point."""
    if _armed is not None:
        _armed.reached(name)
