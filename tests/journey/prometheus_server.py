"""A real Prometheus that watches one service and knows the project's rules."""

import json
import math
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.journey.running import ROOT, free_port, wait_until

_CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: enricher
    static_configs: [{{targets: ["127.0.0.1:{port}"], labels: {{pod: e-0}}}}]
"""


class PrometheusServer:
    """Use as a context manager; it is ended, and its data are removed, with the test."""

    def __init__(self, program: str, *, service_port: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        config = Path(self._folder.name) / "prometheus.yml"
        config.write_text(_CONFIG.format(rules=ROOT / "deploy" / "monitoring" / "alerts.yml", port=service_port))
        self._port = free_port()
        listen = f"--web.listen-address=127.0.0.1:{self._port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [program, f"--config.file={config}", f"--storage.tsdb.path={self._folder.name}/data", listen],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "PrometheusServer":
        wait_until(self._is_scraping, "Prometheus scrapes the service")
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
            return self.query("count_over_time(up[1m])")[:1] >= [2.0] and self.query("up") == [1.0]
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
