"""The custom resources of KEDA and Prometheus, from the Go modules of those projects, for as long as a test needs them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.infrastructure.tools import module_folder
from tests.infrastructure.versions import KEDA, PROMETHEUS_OPERATOR
from tests.journey.running import wait_until
from tests.kubernetes.cluster import Cluster

# Kind to module and the file of its definition there.
DEFINITIONS = {
    "ScaledObject": (f"github.com/kedacore/keda/v2@{KEDA}", "config/crd/bases/keda.sh_scaledobjects.yaml"),
    "ServiceMonitor": (
        f"github.com/prometheus-operator/prometheus-operator@{PROMETHEUS_OPERATOR}",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "PrometheusRule": (
        f"github.com/prometheus-operator/prometheus-operator@{PROMETHEUS_OPERATOR}",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}


@contextmanager
def with_crds(cluster: Cluster, kinds: set[str]) -> Iterator[set[str]]:
    """The kinds that the API server knows meanwhile: all but those whose definition could not be had."""
    known = set(kinds)
    added: list[Path] = []
    try:
        for kind in kinds & set(DEFINITIONS):
            file = definition_file(kind)
            if file is None:
                known.discard(kind)
                continue
            created = cluster.try_kubectl("create", "-f", str(file))
            if created.returncode == 0:
                added.append(file)
                wait = ("wait", "--for=condition=Established", "--timeout=30s", "-f", str(file))
                # Asked again: kubectl gives up on an object whose conditions are not there yet.
                wait_until(lambda wait=wait: cluster.try_kubectl(*wait).returncode == 0, f"{kind} is served")
            else:
                assert "AlreadyExists" in created.stderr, created.stderr
        yield known
    finally:
        for file in added:
            cluster.kubectl("delete", "-f", str(file))


def definition_file(kind: str) -> Path | None:
    """The definition; None where its module cannot be had."""
    module, path = DEFINITIONS[kind]
    folder = module_folder(module)
    return folder / path if folder else None
