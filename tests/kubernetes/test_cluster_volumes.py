"""A bundle from a claim, on a real cluster."""

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.journey.running import wait_until
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import NewRelease

pytestmark = pytest.mark.integration


def on_node(cluster: Cluster, image: str, node: str, folder: str, script: str) -> None:
    """A shell script as root on that node, which sees its `folder` as /claim; outside the namespace, which admits no such pod."""
    name = f"enricher-{uuid.uuid4().hex[:8]}"
    container = {"name": "script", "image": image, "imagePullPolicy": "Never", "command": ["sh", "-ec", script]}
    spec = {
        "nodeName": node,
        "restartPolicy": "Never",
        "securityContext": {"runAsUser": 0},
        "containers": [{**container, "volumeMounts": [{"name": "claim", "mountPath": "/claim"}]}],
        "volumes": [{"name": "claim", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    cluster.kubectl("--namespace=default", "create", "-f", "-", given=pod)
    try:
        done = ("--namespace=default", "wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
        cluster.kubectl(*done)
    finally:
        cluster.kubectl("--namespace=default", "delete", "pod", name, "--wait=false")


@pytest.fixture
def claim(cluster: Cluster, image: str) -> Iterator[tuple[str, str]]:
    """A bound claim that holds the shipped bundle as `other/books-1`, and the node that has it."""
    name, node = f"bundles-{uuid.uuid4().hex[:8]}", cluster.get("nodes")[0]["metadata"]["name"]
    folder = f"/var/tmp/{name}"
    on_node(cluster, image, node, folder, "mkdir -p /claim/other && cp -r /opt/enricher/model/bundles/books /claim/other/books-1")
    size = {"storage": "1Gi"}
    volume = {"capacity": size, "accessModes": ["ReadOnlyMany"], "hostPath": {"path": folder}, "storageClassName": ""}
    wanted = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": size}, "storageClassName": "", "volumeName": name}
    for kind, spec in (("PersistentVolume", volume), ("PersistentVolumeClaim", wanted)):
        cluster.kubectl("create", "-f", "-", given={"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
    yield name, node
    cluster.kubectl("delete", "pvc,pv", name, "--wait=false")
    on_node(cluster, image, node, folder, "rm -r /claim/other")


def test_a_bundle_comes_from_a_claim(cluster: Cluster, new_release: NewRelease, claim: tuple[str, str]) -> None:
    """`model.from: claim`: two replicas serve the folder of it that `model.bundle` names, and cannot write to it."""
    name, node = claim
    model = {"bundle": "other/books-1", "from": "claim", "claim": name}
    release = new_release(replicas=2, model=model, nodeSelector={"kubernetes.io/hostname": node})
    release.install()
    release.wait_rolled_out()
    run = ("exec", release.deployment, "-c", "service", "--")
    said = cluster.kubectl(*run, "python3", "-m", "consumer", "doctor")
    print(f"\n{said}")
    assert "/models/other/books-1" in said
    assert "Read-only file system" in cluster.try_kubectl(*run, "touch", "/models/x").stderr

    release.upgrade(model={**model, "bundle": "other/books-2"})
    wait_until(
        lambda: any("books-2" in json.dumps(pod["status"]) for pod in release.pods()), "a bundle that is not there is named"
    )
    assert sum(one.get("ready", False) for pod in release.pods() for one in pod["status"].get("containerStatuses", [])) == 2
