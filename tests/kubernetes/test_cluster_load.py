"""What a platform team does to a running service, under load: nothing is lost, nothing doubled, and the lag is gone at once."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.history import answered, asked, prove
from tests.faults.load import Load
from tests.faults.watcher import Watcher
from tests.journey.running import Surroundings, decode_enriched, read_topic, wait_until
from tests.kubernetes.cluster import Cluster, Release, bundle_image
from tests.kubernetes.conftest import NewRelease

pytestmark = pytest.mark.integration

LAG_GONE_S_MAX = 60.0
CAUGHT_UP = 60  # records: half a second of the load, less than what is in flight at any moment
BUNDLE = Path(__file__).resolve().parents[2] / "model" / "bundles" / "books"


def restart(release: Release) -> None:
    release.cluster.kubectl("rollout", "restart", release.deployment)
    release.wait_rolled_out()


def upgrade(release: Release) -> None:
    release.upgrade(podAnnotations={"example.com/changed": "yes"})
    release.wait_rolled_out()


def scale(release: Release) -> None:
    for replicas in (1, 3, 1):
        release.cluster.kubectl("scale", release.deployment, f"--replicas={replicas}")
        release.wait_rolled_out()


def drain(release: Release) -> None:
    node = release.pods()[0]["spec"]["nodeName"]
    release.cluster.kubectl(
        "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s", timeout_s=150
    )
    try:
        release.wait_rolled_out()
    finally:
        release.cluster.kubectl("uncordon", node)


def delete_by_force(release: Release) -> None:
    for _ in range(3):
        name = release.pods()[0]["metadata"]["name"]
        release.cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        time.sleep(2)
    release.wait_rolled_out()


def goes_on(surroundings: Surroundings, load: Load) -> None:
    """Returns when answers are being committed."""
    before = answered(surroundings)
    wait_until(lambda: answered(surroundings) > before + 50, "answers are committed", deadline_s=90)


def lag_gone_s(surroundings: Surroundings) -> float:
    """Seconds from now until the group is level with the load."""
    start = time.monotonic()
    wait_until(lambda: asked(surroundings) - answered(surroundings) <= CAUGHT_UP, "the lag is gone", deadline_s=LAG_GONE_S_MAX)
    return time.monotonic() - start


@pytest.mark.parametrize("disturb", [restart, upgrade, scale, drain, delete_by_force], ids=lambda way: way.__name__)
def test_a_disturbance_loses_and_doubles_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, new_release: NewRelease, disturb: Callable[[Release], None]
) -> None:
    """Two replicas at work; afterwards the checker is content and the lag is gone within 60 s."""
    release = new_release(replicas=2)
    release.install()
    release.wait_rolled_out()
    goes_on(surroundings, load)
    start = time.monotonic()
    disturb(release)
    took_s = time.monotonic() - start
    gone_s = lag_gone_s(surroundings)
    prove(surroundings, load, f"{disturb.__name__}: took {took_s:.1f} s, lag gone {gone_s:.1f} s after")


def test_a_model_is_rolled_out_and_back_under_load(
    cluster: Cluster,
    surroundings: Surroundings,
    load: Load,
    watcher: Watcher,
    new_release: NewRelease,
    image: str,
    tmp_path: Path,
) -> None:
    """One value changes the model; what is stored never goes back; `helm rollback` brings the former one."""
    newer = bundle_image(cluster, image, tmp_path, version="9.9.9", later_s=1000)
    release = new_release(replicas=2)
    release.install()
    release.wait_rolled_out()
    goes_on(surroundings, load)
    release.upgrade(model={"bundle": newer, "pullPolicy": "Never"})
    release.wait_rolled_out()
    goes_on(surroundings, load)
    release.rollback()
    release.wait_rolled_out()
    goes_on(surroundings, load)
    prove(surroundings, load, "model rollout and rollback")
    by_model: Counter[tuple[str, int]] = Counter()
    epochs: dict[tuple[str, int], int] = {}
    for event in decode_enriched(surroundings, read_topic(surroundings.bootstrap_servers, surroundings.topics.output)):
        if event is not None:
            by_model[event["model_version"], event["model_epoch"]] += 1
            version = (event["listing_id"], event["version"])
            assert event["model_epoch"] >= epochs.get(version, 0), f"an older model won: {version}"
            epochs[version] = event["model_epoch"]
    print(f"events by model and epoch: {dict(by_model)}")
    assert len(by_model) == 2
