"""Replicas of the service that are made to be broken: armed with failpoints, killed, frozen, mutated."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

from tests.journey.running import ROOT, RunningService, Surroundings, wait_until

ASSIGNED = "partitions_assigned"
KILLED = -signal.SIGKILL


class Replica(RunningService):
    """`python -m consumer run`, or a mutation of it.

    Args:
        failpoint: as `consumer/failpoints.py` reads it.
        mutation: a name of `tests/faults/mutant.py`; the service then lacks what the name says.
        around: makes another command of the service's, one that ends up as this.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        failpoint: str = "",
        mutation: str = "",
        around: Callable[[list[str]], list[str]] = list,
        **overrides: str,
    ) -> None:
        environment = surroundings.environment(**overrides)
        self._port = int(environment["CONSUMER_HTTP__PORT"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
        command = ["-m", "tests.faults.mutant", mutation] if mutation else ["-m", "consumer", "run"]
        self._process = subprocess.Popen(
            around([sys.executable, *command]),
            cwd=ROOT,
            env={**kept, **environment, "FAILPOINT": failpoint},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Replica":
        return self

    def __exit__(self, *about: object) -> None:
        print(f"--- a replica's log ends:\n{self.log()[-2500:]}")  # pytest shows it where the test fails
        super().__exit__(*about)

    def wait_ready(self) -> "Replica":
        """Returns when /readyz says so."""
        super().wait_ready()
        return self

    def wait_assigned(self) -> "Replica":
        """Returns when it was given its first partitions."""
        self.wait_logged(ASSIGNED)
        return self

    def wait_logged(self, event: str, *, deadline_s: float = 60.0) -> None:
        """Returns when an event stands in its log. Raises: AssertionError, when it ended before."""

        def logged() -> bool:
            if event in self.log():
                return True
            assert self.is_running(), f"ended with {self._process.returncode} before {event}:\n{self.log()[-3000:]}"
            return False

        wait_until(logged, f"{event} in the log", deadline_s=deadline_s)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting."""
        self._process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: to the group it looks dead, and it does not know."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)
