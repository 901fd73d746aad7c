"""What Helm renders, held by kubeconform against the schemas of Kubernetes 1.34, KEDA and prometheus-operator; no cluster."""

import copy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.infrastructure import tools
from tests.kubernetes import schemas
from tests.kubernetes.chart import VALUE_FILES, Manifest, only, render

pytestmark = pytest.mark.integration

Conform = Callable[[list[Manifest]], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def conform() -> Iterator[Conform]:
    """`kubeconform -strict` on manifests."""
    program = tools.find("kubeconform")
    if program is None:
        pytest.skip("kubeconform is not on PATH and could not be built: run `python -m tests.infrastructure prepare`")
    with TemporaryDirectory() as folder:
        if not schemas.write(Path(folder)):
            pytest.skip("the Go modules with the schemas could not be had")

        def run(manifests: list[Manifest]) -> "subprocess.CompletedProcess[str]":
            argv = [str(program), "-strict", "-summary", "-schema-location", f"{folder}/{schemas.LOCATION}"]
            return subprocess.run(argv, input=yaml.safe_dump_all(manifests), capture_output=True, text=True, timeout=120)

        yield run


@pytest.mark.parametrize("values", [None, *VALUE_FILES], ids=lambda file: file.stem if file else "no values")
def test_every_manifest_conforms(conform: Conform, values: Path | None) -> None:
    """For the chart's defaults and for every value file; a kind without a schema is an error, too."""
    manifests = render(None, *([values] if values else []))
    done = conform(manifests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Summary: {len(manifests)} resources found" in done.stdout
    assert f"Valid: {len(manifests)}, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout


def at(*path: str | int, value: Any) -> Callable[[Manifest], None]:
    def change(manifest: Any) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = value

    return change


WRONG = {
    "a field that is not there": ("default", "Deployment", at("spec", "replica", value=1)),
    "one deep down": ("default", "Deployment", at("spec", "template", "spec", "containers", 0, "readynessProbe", value={})),
    "one of the metadata": ("default", "ServiceMonitor", at("metadata", "label", value={})),
    "a wrong type": ("default", "Service", at("spec", "ports", 0, "port", value="http")),
    "a version that does not exist": ("default", "PodDisruptionBudget", at("apiVersion", value="policy/v1beta1")),
    "a field of KEDA's that is not there": ("keda", "ScaledObject", at("spec", "maxReplicas", value=3)),
    "a wrong type of Prometheus's": ("default", "PrometheusRule", at("spec", "groups", 0, "rules", 0, "expr", value=[1])),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_manifest_is_refused(conform: Conform, name: str) -> None:
    """The very manifest that conforms, with one thing changed."""
    file, kind, change = WRONG[name]
    [values] = [one for one in VALUE_FILES if one.stem == file]
    manifest = copy.deepcopy(only(render(None, values), kind))
    assert conform([manifest]).returncode == 0
    change(manifest)
    done = conform([manifest])
    assert done.returncode == 1, done.stdout
