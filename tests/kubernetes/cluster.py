"""The cluster that KUBECONFIG names, and a release of the chart on it."""

import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from consumer.settings import ModelSettings
from model.bundle import MANIFEST
from tests.faults.bundles import another_bundle
from tests.infrastructure import service_image, tools
from tests.journey.running import Surroundings, wait_until
from tests.kubernetes.chart import CHART, Manifest

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
APP = "app.kubernetes.io/component=service"


class Cluster:
    """A namespace of its own on the cluster, with restricted Pod Security enforced. `remove` leaves nothing."""

    def __init__(self) -> None:
        self.namespace = f"enricher-{uuid.uuid4().hex[:8]}"
        labels = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": RESTRICTED}}
        self.kubectl("create", "-f", "-", given=labels)

    def remove(self) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--wait=true", timeout_s=180)

    def kubectl(self, *arguments: str, given: Any = None, timeout_s: float = 120) -> str:
        """What it prints. Raises: AssertionError with what it complains of."""
        done = self.try_kubectl(*arguments, given=given, timeout_s=timeout_s)
        assert done.returncode == 0, f"kubectl {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *arguments: str, given: Any = None, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        text = None if given is None else given if isinstance(given, str) else json.dumps(given)
        argv = ["kubectl", "--namespace", self.namespace, *arguments]
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout_s)

    def get(self, *arguments: str) -> list[Manifest]:
        """The objects, parsed."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return list(found["items"]) if found["kind"].endswith("List") else [found]

    def load(self, image: str) -> None:
        """The image is on every node: by the command that CLUSTER_LOAD names, to which the image is given."""
        has = [
            any(image in name for one in node["status"].get("images", []) for name in one.get("names") or [])
            for node in self.get("nodes")
        ]
        if not all(has):
            subprocess.run([*shlex.split(os.environ["CLUSTER_LOAD"]), image], check=True, capture_output=True, timeout=600)


class Release:
    """One `helm install` and what becomes of it."""

    def __init__(self, cluster: Cluster, values: Mapping[str, Any]) -> None:
        self.name = f"books-{uuid.uuid4().hex[:6]}"
        self.deployment = f"deployment/{self.name}-listing-enricher"
        self.cluster = cluster
        self._values = dict(values)

    def install(self, **values: Any) -> str:
        """What helm prints. Waits for nothing."""
        return self._helm("install", self.name, str(CHART), values={**self._values, **values})

    def upgrade(self, **values: Any) -> None:
        """With other values from now on; waits for nothing."""
        self._values |= values
        self._helm("upgrade", self.name, str(CHART), values=self._values)

    def rollback(self) -> None:
        """To the revision before."""
        self._helm("rollback", self.name)

    def test(self) -> str:
        return self._helm("test", self.name, "--timeout", "3m")

    def uninstall(self) -> None:
        self._helm("uninstall", self.name, "--wait", "--ignore-not-found", "--timeout", "3m")

    def wait_rolled_out(self, *, timeout_s: int = 180) -> None:
        """All replicas of the newest template are ready, and no other is left."""
        self.cluster.kubectl("rollout", "status", self.deployment, f"--timeout={timeout_s}s", timeout_s=timeout_s + 10)
        replicas = self.cluster.get(self.deployment)[0]["spec"]["replicas"]
        wait_until(lambda: len(self.pods()) == replicas, f"{replicas} pods are left", deadline_s=90)

    def pods(self) -> list[Manifest]:
        """Also those that are going."""
        return self.cluster.get("pods", "-l", f"app.kubernetes.io/instance={self.name},{APP}")

    def pod(self) -> Manifest:
        """The only one. Raises: AssertionError."""
        pods = self.pods()
        assert len(pods) == 1, [one["metadata"]["name"] for one in pods]
        return pods[0]

    def state(self) -> Manifest:
        """The status of the only pod's service container; {} while there is none."""
        pods = self.pods()
        return dict(pods[0]["status"].get("containerStatuses", [{}])[0]) if len(pods) == 1 else {}

    def restarts(self) -> int:
        return sum(int(one.get("restartCount", 0)) for pod in self.pods() for one in pod["status"].get("containerStatuses", []))

    def ended(self) -> Manifest:
        """How the service's container ended, once it has: reason, exitCode, message."""
        found: list[Manifest] = []

        def has_ended() -> bool:
            state = self.state()
            found[:] = [one for key in ("lastState", "state") if (one := state.get(key, {}).get("terminated"))]
            return bool(found)

        wait_until(has_ended, "the container has ended", deadline_s=120)
        return found[0]

    def log(self, *, ended: bool = False) -> str:
        """Of the only pod's service container; `ended`: of the last one that ended."""
        argv = ["logs", self.pod()["metadata"]["name"], "-c", "service"]
        before = self.cluster.try_kubectl(*argv, "--previous")
        return before.stdout if ended and before.returncode == 0 else self.cluster.kubectl(*argv)

    def events(self) -> list[str]:
        """What the kubelet says of the only pod."""
        name = self.pod()["metadata"]["name"]
        return [one["message"] for one in self.cluster.get("events", "--field-selector", f"involvedObject.name={name}")]

    def _helm(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        program = tools.find("helm")
        assert program is not None, "no helm: run `python -m tests.infrastructure prepare`"
        given = ["--values", "-"] if values is not None else []
        argv = [str(program), "--namespace", self.cluster.namespace, *arguments, *given]
        text = None if values is None else yaml.safe_dump(dict(values))
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"helm {shlex.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout


# `cp`, which the init container runs, and its libraries: all of the service's image would take a minute to bring to the nodes.
_ONLY_CP = """
RUN mkdir /tmp/only && cp -L --parents /bin/cp $(ldd /bin/cp | grep -o '/[^ ]*') /tmp/only
FROM scratch
COPY --from=whole /tmp/only /
COPY bundle /bundle
"""


def bundle_image(cluster: Cluster, image: str, folder: Path, *, version: str, later_s: int) -> str:
    """The shipped bundle under another version and an epoch so much later, as an image on every node."""
    manifest = json.loads((Path(ModelSettings().bundle) / MANIFEST).read_text(encoding="utf-8"))
    another_bundle(folder / "bundle", version=version, epoch=manifest["epoch"] + later_s, labels=3)
    return image_of_bundle(cluster, image, folder, tag=version)


def image_of_bundle(cluster: Cluster, image: str, folder: Path, *, tag: str) -> str:
    """`folder`/bundle, as it is, as an image on every node; `cp` comes from the service's image."""
    bundle = f"listing-enricher-test/bundle:{tag}"
    service_image.build_on(f"{image} AS whole", _ONLY_CP, folder, tag=bundle)
    cluster.load(bundle)
    return bundle


def values_for(surroundings: Surroundings, image: str, **overrides: str) -> dict[str, Any]:
    """Chart values for a test's own servers, topics and prefix; `overrides` as `Surroundings.environment` takes them."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in surroundings.environment(**overrides).items():
        section, setting = name.removeprefix("CONSUMER_").lower().split("__")
        if section != "http":
            tree.setdefault(section, {})[setting] = _parsed(value)
    repository, _, tag = image.partition(":")
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "settings": tree,
        "partitions": 4,
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "768Mi"}},
        "probes": {"readinessPeriodSeconds": 1},
    }


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
