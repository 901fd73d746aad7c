"""A real Prometheus that watches replicas of the service and knows the project's rules."""

import json
import math
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.infrastructure.servers import free_port
from tests.journey.running import ROOT, wait_until

_CONFIG = """
global: {{scrape_interval: {every_s}s, evaluation_interval: {every_s}s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: enricher
    static_configs: {targets}
"""


class PrometheusServer:
    """Use as a context manager; it is ended, and its data are removed, with the test."""

    def __init__(self, program: str, *, service_ports: Sequence[int], every_s: int = 1) -> None:
        self._folder = tempfile.TemporaryDirectory()
        config = Path(self._folder.name) / "prometheus.yml"
        targets = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"pod": f"e-{number}"}} for number, port in enumerate(service_ports)
        ]
        rules = ROOT / "deploy" / "monitoring" / "alerts.yml"
        config.write_text(_CONFIG.format(rules=rules, targets=json.dumps(targets), every_s=every_s))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        listen = f"--web.listen-address=127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [program, f"--config.file={config}", f"--storage.tsdb.path={self._folder.name}/data", listen],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "PrometheusServer":
        try:
            wait_until(self._is_scraping, "Prometheus scrapes the service")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()
        self._folder.cleanup()

    def query(self, expression: str) -> list[float]:
        """The values of an instant query, without those that are no numbers."""
        found = self._get("/api/v1/query", query=expression)["result"]
        return [number for one in found if math.isfinite(number := float(one["value"][1]))]

    def rules(self) -> list[dict[str, Any]]:
        """Each alert with its `health` and `state`."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _is_scraping(self) -> bool:
        assert self._process.poll() is None, "Prometheus ended"
        try:
            return self.query("count_over_time(up[1m])")[:1] >= [2.0] and 1.0 in self.query("up")
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]
