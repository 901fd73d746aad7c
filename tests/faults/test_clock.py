"""A wall clock that is set back or forward, as NTP does: nothing is lost, for versions come from events and waits end."""

import time
from pathlib import Path

import pytest

from tests.faults.clock import WallClock, can_step
from tests.faults.history import prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.faults.test_dependencies import PATIENT, goes_on
from tests.faults.watcher import Watcher
from tests.journey.running import Surroundings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not can_step(), reason="needs Linux and a C compiler, for a wall clock of the service's own"),
]

HOUR_S = 3600


def figure(service: Replica, name: str) -> float:
    """A figure of /metrics without labels."""
    _, text = service.get("/metrics")
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.short_form
def test_a_wall_clock_set_back_and_forward_loses_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, tmp_path: Path
) -> None:
    """An hour back, an hour forward, right again, under load: the same process goes on each time, and so does a new one."""
    clock = WallClock(tmp_path)
    with Replica(surroundings, around=clock.around, KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        for step_s in (-HOUR_S, HOUR_S, 0):
            clock.step(step_s)
            goes_on(surroundings, service, time.monotonic(), f"the wall clock is {step_s} s off")
            time.sleep(8.0)  # longer than a session
            goes_on(surroundings, service, time.monotonic(), f"the wall clock has been {step_s} s off for a while")
            if step_s == -HOUR_S:
                assert 0 <= figure(service, "enricher_latency_seconds_sum") < HOUR_S
        assert service.get("/livez")[0] == 200
        clock.step(-HOUR_S)
        assert service.terminate() == 0
    with Replica(surroundings, around=clock.around, KAFKA__PROPERTIES=PATIENT) as late:
        late.wait_assigned()
        prove(surroundings, load, "the wall clock set back and forward by an hour")
        assert late.terminate() == 0
