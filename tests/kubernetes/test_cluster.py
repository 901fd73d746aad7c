"""A release on a real cluster: it comes, works, goes, and says why where it does not."""

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.load import Load
from tests.infrastructure.servers import KafkaServer, RedisServer, Server
from tests.journey.running import Surroundings, wait_until
from tests.kubernetes.chart import VALUE_FILES, only, render
from tests.kubernetes.cluster import Cluster, Release, image_of_bundle
from tests.kubernetes.conftest import NewRelease
from tests.kubernetes.crds import with_crds

pytestmark = pytest.mark.integration

READY_S_MAX = 60.0
BUNDLE = Path(__file__).resolve().parents[2] / "model" / "bundles" / "books"


def test_a_release_comes_works_and_goes(cluster: Cluster, new_release: NewRelease) -> None:
    """Install, ready within 60 s, `helm test` sends a listing through, uninstall leaves nothing; all restricted."""
    release, start = new_release(replicas=2, partitions=1), time.monotonic()
    notes = release.install()
    assert "2 replicas for 1 partitions: 1 of them stand idle" in notes
    release.wait_rolled_out()
    ready_s = time.monotonic() - start
    print(f"\ntwo replicas ready {ready_s:.1f} s after `helm install`")
    assert ready_s < READY_S_MAX

    name = release.pods()[0]["metadata"]["name"]
    inside = "import os; print(os.getuid(), os.access('/opt/enricher', os.W_OK), os.path.exists('/var/run/secrets'))"
    assert cluster.kubectl("exec", name, "-c", "service", "--", "python3", "-c", inside).split() == ["10001", "False", "False"]
    assert "Read-only file system" in cluster.try_kubectl("exec", name, "-c", "service", "--", "touch", "/x").stderr

    assert "Succeeded" in release.test()
    for command, said in (("doctor", "ok   redis"), ("rebuild", "records read")):
        assert said in cluster.kubectl("exec", release.deployment, "-c", "service", "--", "python3", "-m", "consumer", command)
    release.uninstall()
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith("events")]
    asked = ["get", ",".join(kinds), "-l", f"app.kubernetes.io/instance={release.name}", "-o", "name"]
    wait_until(lambda: cluster.kubectl(*asked) == "", "nothing is left")


@pytest.mark.parametrize("file", VALUE_FILES, ids=lambda file: file.stem)
def test_the_api_server_accepts_what_is_rendered(cluster: Cluster, file: Path) -> None:
    """Its own dry run, for every value file; KEDA's and Prometheus's objects by the schemas that those projects publish."""
    manifests = render(None, file)
    with with_crds(cluster, {one["kind"] for one in manifests}) as served:
        checked = [one for one in manifests if one["kind"] in served]
        unchecked = sorted({one["kind"] for one in manifests} - served)
        cluster.kubectl("create", "-f", "-", given=only(manifests, "ServiceAccount"))  # pods are refused without theirs
        checked = [one for one in checked if one["kind"] != "ServiceAccount"]
        given = {"apiVersion": "v1", "kind": "List", "items": checked}
        done = cluster.try_kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", given=given)
        cluster.kubectl("delete", "serviceaccount", "books-listing-enricher")
    print(f"\n{file.stem}: {len(checked) + 1} objects; unchecked: {unchecked or 'none'}")
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr, done.stderr


@pytest.mark.parametrize("which", ["kafka", "redis"])
def test_what_is_away_at_start_is_waited_for(
    new_release: NewRelease, kafka_broker: KafkaServer, redis_server: RedisServer, which: str
) -> None:
    """Not ready, an event says what is waited for, and it recovers without a restart."""
    server: Server = {"kafka": kafka_broker, "redis": redis_server}[which]
    release = new_release({"startup": {"deadline_seconds": 120}})
    server.stop()
    release.install()
    said: list[str] = []

    def says_why() -> bool:
        said[:] = [one for one in release.events() if "Startup probe failed" in one and f'": "{which}: ' in one]
        return bool(said)

    wait_until(says_why, "an event says why")
    print(f"\n{said[0][:300]}")
    assert release.state()["ready"] is False
    server.start()
    start = time.monotonic()
    release.wait_rolled_out()
    print(f"{which}: ready {time.monotonic() - start:.1f} s after its return")
    assert release.restarts() == 0


def test_a_redis_outage_restarts_no_pod(new_release: NewRelease, surroundings: Surroundings, redis_server: RedisServer) -> None:
    """Longer than liveness would bear, were it not that Redis is waited for: not ready, alive, ready again."""
    release = new_release({"health": {"stall_seconds": 5}}, probes={"livenessPeriodSeconds": 2, "readinessPeriodSeconds": 1})
    release.install()
    release.wait_rolled_out()
    with Load(surroundings, seed=1):
        time.sleep(3)
        redis_server.stop()
        wait_until(lambda: release.state().get("ready") is False, "it says that it is not ready")
        time.sleep(30)
        assert release.restarts() == 0
        redis_server.start()
        wait_until(lambda: release.state().get("ready") is True, "it is ready again")
    assert release.restarts() == 0


def test_a_stuck_pipeline_is_restarted(new_release: NewRelease, surroundings: Surroundings) -> None:
    """A thread that never comes back: liveness fails after `health.stall_seconds`, it is restarted, the log has the stacks."""
    stuck = [{"name": "FAILPOINT", "value": "before_store:sleep=3600:3"}]
    release = new_release({"health": {"stall_seconds": 5}}, probes={"livenessPeriodSeconds": 2}, env=stuck)
    release.install()
    release.wait_rolled_out()
    with Load(surroundings, seed=2):
        start = time.monotonic()
        wait_until(lambda: any("Liveness probe failed" in event for event in release.events()), "liveness fails")
        print(f"\nliveness fails {time.monotonic() - start:.1f} s after the load began")
        wait_until(lambda: release.restarts() > 0, "it was restarted", deadline_s=120)
        print(f"restarted {time.monotonic() - start:.1f} s after the load began")
    [said] = [line for line in release.log(ended=True).splitlines() if '"event": "stuck"' in line]
    assert "failpoints.py" in said, "the stack of the thread that sleeps"


def last_line(release: Release) -> str:
    return release.log(ended=True).strip().rpartition("\n")[2]


def says(release: Release, *words: str) -> str:
    """The termination message, which must hold the words, as must the log's last line."""
    ended = release.ended()
    message = ended.get("message", "")
    for word in words:
        assert word in message, ended
    # Asked again: between two questions the container may have been started anew, and have said nothing yet.
    wait_until(lambda: all(word in last_line(release) for word in words), "the log's last line names it too")
    print(f"\nexit code {ended['exitCode']}: {message.strip().splitlines()[-1][:200]}")
    return str(message)


def test_a_wrong_setting_is_named(new_release: NewRelease) -> None:
    """One that the schema could not see, since it came by the environment."""
    release = new_release(env=[{"name": "CONSUMER_BATCH__MAX_RECORDS", "value": "many"}])
    release.install()
    says(release, "batch.max_records", "many")
    assert release.ended()["exitCode"] == 2


def test_a_missing_secret_is_named(new_release: NewRelease) -> None:
    """The setting whose Secret is not there."""
    release = new_release(secretSettings={"model.public_key": {"secret": "not-there", "key": "pem"}})
    release.install()
    says(release, "model.public_key", "CONSUMER_MODEL__PUBLIC_KEY_FILE")
    assert release.ended()["exitCode"] == 2


def test_a_corrupt_bundle_is_named(cluster: Cluster, new_release: NewRelease, image: str, tmp_path: Path) -> None:
    """A byte of the graph is another than the manifest says."""
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    graph = tmp_path / "bundle" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    corrupt = image_of_bundle(cluster, image, tmp_path, tag="corrupt")
    release = new_release(model={"bundle": corrupt, "pullPolicy": "Never"})
    release.install()
    says(release, "model.onnx", "sha256")
    assert release.ended()["exitCode"] == 2


def test_too_little_memory_is_named(new_release: NewRelease) -> None:
    """The kernel's kill leaves no log line: Kubernetes itself says OOMKilled."""
    release = new_release(resources={"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}})
    release.install()
    ended = release.ended()
    print(f"\n{json.dumps(ended)}")
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
