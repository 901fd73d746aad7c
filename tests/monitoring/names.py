"""Names of metrics: those in a PromQL expression, and those that the service has."""

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
# Of kube-state-metrics, not ours.
OF_OTHERS = frozenset({"kube_pod_container_status_last_terminated_exitcode"})
_METRIC = re.compile(r"\b(?:enricher|kube)_[a-z_]+\b")
_SERIES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def used(expression: str) -> set[str]:
    """The metrics that an expression reads; all of ours begin with enricher_."""
    return set(_METRIC.findall(expression)) - OF_OTHERS


def series(registry: CollectorRegistry) -> Iterator[str]:
    """The names under which Prometheus stores what a registry tells."""
    for family in registry.collect():
        yield from (family.name + ending for ending in _SERIES[family.type])
