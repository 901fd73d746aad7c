"""What every fault test needs: real servers with topics of its own, quick time-outs, a seed that is printed.

They stop servers and wait for time-outs, so most run on demand: `make faults` does each fault a few times, the long form,
`FAULT_ROUNDS=20 make faults`, does them so often and runs the tests marked `long_form`, too. `FAULT_SEED` repeats a run. Without
`FAULTS=1`, in `make test`, the checker's own tests run, and those marked `short_form`.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Load
from tests.faults.watcher import Watcher
from tests.infrastructure.topics import Topics
from tests.journey.running import Surroundings

# As short as a busy machine bears: a killed member's partitions are free after the one, its open transaction after the other.
QUICK = (
    '{"session.timeout.ms": 4000, "heartbeat.interval.ms": 700, "transaction.timeout.ms": 5000, "reconnect.backoff.max.ms": 1000}'
)


_HERE = Path(__file__).resolve().parent


def rounds(short: int, *, per_round: int = 1) -> int:
    """How often to do it: `short`, or `FAULT_ROUNDS` times `per_round` in the long form."""
    asked = os.environ.get("FAULT_ROUNDS")
    return int(asked) * per_round if asked else short


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long_form: only with FAULT_ROUNDS")
    config.addinivalue_line("markers", "short_form: also in `make test`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_servers = [item for item in items if _HERE in item.path.parents and item.get_closest_marker("integration")]
    if os.environ.get("FAULTS") == "1":
        left_out = [] if "FAULT_ROUNDS" in os.environ else [one for one in on_servers if one.get_closest_marker("long_form")]
    else:
        left_out = [one for one in on_servers if not one.get_closest_marker("short_form")]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def surroundings(
    bootstrap_servers: str, registry_url: str, redis_url: str, redis_prefix: str, topics: Any
) -> Iterator[Surroundings]:
    """Four partitions of its own, small batches, quick time-outs."""
    created: Topics = topics(partitions=4)
    overrides = {"KAFKA__PROPERTIES": QUICK, "BATCH__MAX_RECORDS": "16", "LOG__LEVEL": "info"}
    opened = Surroundings(bootstrap_servers, registry_url, redis_url, redis_prefix, created, overrides)
    yield opened
    opened.close()


@pytest.fixture
def seed() -> int:
    """A new one each time, printed with a failure; `FAULT_SEED` repeats one."""
    chosen = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"FAULT_SEED={chosen}")
    return chosen


@pytest.fixture
def load(surroundings: Surroundings, seed: int) -> Iterator[Load]:
    """A shop at work from the first moment of the test."""
    with Load(surroundings, seed=seed) as shop:
        yield shop


@pytest.fixture
def watcher(surroundings: Surroundings, load: Load) -> Iterator[Watcher]:
    """A reader of store and topic beside the test; it must not have seen anything wrong."""
    with Watcher(surroundings, load) as reader:
        yield reader
    assert reader.violations == [], "\n".join(str(one) for one in reader.violations[:20])
    assert reader.looks > 5
