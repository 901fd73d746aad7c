"""The dashboard is what its generator writes, and shows what the service has."""

import json
import runpy
from typing import Any

from consumer.telemetry import Metrics
from tests.monitoring.names import MONITORING, series, used

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_what_its_generator_writes() -> None:
    """dashboard.json was written by make_dashboard.py as it is now."""
    made = runpy.run_path(str(MONITORING / "make_dashboard.py"))
    assert made["dashboard"]() == DASHBOARD


def test_panels_use_metrics_that_the_service_has() -> None:
    """Every metric in a panel is one that the service has, ending included; each query is limited to the chosen pods."""
    told = set(series(Metrics().registry))
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            if expression.startswith("count(ALERTS{"):  # Prometheus' own; no alert of ours has a pod
                assert 'job=~"$job"' in expression
                continue
            assert used(expression), expression
            assert used(expression) - told == set(), panel["title"]
            assert expression.count('{job=~"$job",pod=~"$pod"}') == expression.count("enricher_"), expression


def test_every_metric_is_shown() -> None:
    """A metric that no panel and no alert shows is either noise or forgotten."""
    shown = {name for panel in panels() for target in panel["targets"] for name in used(target["expr"])}
    shown |= used((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    left_out = {family.name for family in Metrics().registry.collect() if not any(name.startswith(family.name) for name in shown)}
    assert left_out == {"enricher_client_queue_bytes"}  # beside the queue's records it would say the same twice


def test_panels_do_not_overlap() -> None:
    """Each place on the grid, 24 wide, is one panel's."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
