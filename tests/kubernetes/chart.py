"""The chart as Helm renders it: `render` for values, `refusal` for what Helm says of wrong ones."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infrastructure import tools
from tests.infrastructure.versions import KUBERNETES

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart"
VALUE_FILES = sorted((CHART / "ci").glob("*.yaml"))
# Helm's own guess is an old one where it was built by `go install`.
OF_KUBERNETES = ("--kube-version", KUBERNETES)

Manifest = dict[str, Any]


def helm(*arguments: str, values: Mapping[str, Any] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs it; `values` go in by standard input. Skips the test where there is no helm."""
    program = tools.find("helm")
    if program is None:
        pytest.skip("helm is not on PATH and could not be built (`go install`): run `python -m tests.infrastructure prepare`")
    given = ["--values", "-"] if values is not None else []
    text = yaml.safe_dump(dict(values)) if values is not None else None
    return subprocess.run([str(program), *arguments, *given], input=text, capture_output=True, text=True, timeout=120)


def template(values: Mapping[str, Any] | None = None, *files: Path) -> "subprocess.CompletedProcess[str]":
    named = [argument for file in files for argument in ("--values", str(file))]
    return helm("template", "books", str(CHART), "--namespace", "shop", *OF_KUBERNETES, *named, values=values)


def render(values: Mapping[str, Any] | None = None, *files: Path) -> list[Manifest]:
    """All manifests. Raises: AssertionError with what helm says."""
    done = template(values, *files)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says of wrong values."""
    done = template(values)
    assert done.returncode != 0, "the values were accepted"
    return done.stderr


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The one of this kind that is no test."""
    found = [one for one in manifests if one["kind"] == kind and "helm.sh/hook" not in one["metadata"].get("annotations", {})]
    assert len(found) == 1, f"expected one {kind}, found {len(found)}"
    return found[0]


def pod(manifests: list[Manifest]) -> Manifest:
    """The pod's spec in the Deployment."""
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec
