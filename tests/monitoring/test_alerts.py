"""Each alert rings when it should, is silent when all is well, and says what to do."""

import re
import subprocess

import pytest

from consumer.telemetry import Metrics
from tests.monitoring.names import MONITORING, series, used

ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
CASES = (MONITORING / "alerts.test.yml").read_text(encoding="utf-8")
NAMES = re.findall(r"- alert: (\w+)", ALERTS)


@pytest.mark.integration
def test_alerts_ring_when_they_should(promtool: str) -> None:
    """promtool accepts the rules, and each rings in one history of metrics and is silent in the other."""
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.test.yml"], cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_for_each_side_and_a_line_in_the_runbook() -> None:
    """No alert without a history in which it rings, one in which it is silent, and a line that says what to do."""
    runbook = (MONITORING / "runbook.md").read_text(encoding="utf-8")
    assert len(NAMES) == len(set(NAMES)) >= 11
    for name in NAMES:
        assert f"alertname: {name}, exp_alerts: []" in CASES, name
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n +- exp_labels", CASES), name
        assert f"`{name}`" in runbook, name


def test_alerts_and_their_cases_use_metrics_that_the_service_has() -> None:
    """Every metric in the rules, and in the histories that prove them, is one that the service has, ending included."""
    told = set(series(Metrics().registry))
    assert used(ALERTS) - told == set()
    assert used(CASES) - told == set()
