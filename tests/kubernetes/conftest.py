"""A real cluster: `make test-kubernetes`. Without KUBERNETES=1, in `make test`, neither these nor the compose file's run.

KUBECONFIG         names the cluster; `kubectl` is on PATH
CLUSTER_LOAD       the command that brings an image to its nodes: `kind load docker-image`, `…/cluster.sh load`
TEST_SERVERS_HOST  an address of this machine that pods reach: Kafka, Redis and the registry are published there
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import QUICK, load, seed, watcher  # noqa: F401  fixtures
from tests.infrastructure import service_image
from tests.infrastructure.topics import Topics
from tests.journey.running import Surroundings
from tests.kubernetes.cluster import Cluster, Release, values_for

_HERE = Path(__file__).resolve().parent
_ONLY_ON_DEMAND = ("test_cluster", "test_compose_up")
_NEEDED = ("KUBECONFIG", "CLUSTER_LOAD", "TEST_SERVERS_HOST")

NewRelease = Callable[..., Release]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("KUBERNETES") == "1":
        return
    left_out = [item for item in items if _HERE in item.path.parents and item.path.name.startswith(_ONLY_ON_DEMAND)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A namespace on the real cluster that admits restricted pods only; gone at the end."""
    if missing := [name for name in _NEEDED if not os.environ.get(name)]:
        pytest.skip(f"no cluster: {', '.join(missing)} not set, see {Path(__file__).name}")
    opened = Cluster()
    yield opened
    opened.remove()


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """The CPU image of this checkout, on every node."""
    built = service_image.build()
    cluster.load(built)
    return built


@pytest.fixture
def surroundings(
    cluster: Cluster, bootstrap_servers: str, registry_url: str, redis_url: str, redis_prefix: str, topics: Any
) -> Iterator[Surroundings]:
    """As in the fault tests: four partitions of its own, small batches, quick time-outs."""
    created: Topics = topics(partitions=4)
    overrides = {"KAFKA__PROPERTIES": QUICK, "BATCH__MAX_RECORDS": "16"}
    opened = Surroundings(bootstrap_servers, registry_url, redis_url, redis_prefix, created, overrides)
    yield opened
    opened.close()


@pytest.fixture
def new_release(cluster: Cluster, image: str, surroundings: Surroundings) -> Iterator[NewRelease]:
    """`new_release(replicas=2)`: a release for this test's servers, not installed; uninstalled at the end."""
    made: list[Release] = []

    def make(settings: dict[str, dict[str, Any]] | None = None, **values: Any) -> Release:
        base = values_for(surroundings, image)
        for section, names in (settings or {}).items():
            base["settings"].setdefault(section, {}).update(names)
        made.append(Release(cluster, {**base, **values}))
        return made[-1]

    yield make
    for release in made:
        for pod in release.pods():
            name = pod["metadata"]["name"]
            print(f"--- the log of {name} ends:\n{cluster.try_kubectl('logs', name, '--tail=15').stdout}")
        release.uninstall()
