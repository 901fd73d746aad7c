"""Waiting for a dependency that is away: again and again, at growing intervals, until told to give up."""

from collections.abc import Callable
from threading import Event
from typing import TypeVar

import structlog

from consumer.errors import DependencyUnavailable
from consumer.health import Health
from consumer.telemetry import Metrics

log = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_S_FIRST = 0.1
RETRY_S_MAX = 5.0


class Patience:
    """Safe to share between threads; `give_up` ends every wait."""

    def __init__(self, *, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._given_up = Event()

    def ask(self, call: Callable[[], T], *, between: Callable[[], None] | None = None) -> T:
        """Calls until it is answered.

        Args:
            call: raises DependencyUnavailable while there is no answer; must be safe to repeat.
            between: run between two tries, on this thread; what it raises ends the wait.

        Raises:
            DependencyUnavailable: `give_up` was called.
        """
        delay_s = RETRY_S_FIRST
        waited = False
        try:
            while True:
                try:
                    return call()
                except DependencyUnavailable as error:
                    if self._given_up.is_set():
                        raise
                    waited = True
                    self._metrics.dependency_waits.labels(error.dependency).inc()
                    self._health.waiting_for(error.dependency)
                    log.warning("waiting_for_dependency", dependency=error.dependency, reason=error.reason)
                self._given_up.wait(delay_s)
                delay_s = min(2 * delay_s, RETRY_S_MAX)
                if between is not None:
                    between()
        finally:
            if waited:  # also where the wait ended in an error: nobody waits any more
                self._health.waiting_for(None)

    def give_up(self) -> None:
        """From now on the first failure is raised."""
        self._given_up.set()
