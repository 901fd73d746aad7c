"""What an operator sees of the real service: in a real Prometheus, and in the spans that it sends."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model.bundle import MANIFEST
from tests.infrastructure import prometheus
from tests.infrastructure.servers import free_port
from tests.journey.prometheus_server import PrometheusServer
from tests.journey.publishing import publish, send_raw
from tests.journey.running import ROOT, RunningService, Surroundings, wait_for_answers, wait_until

pytestmark = pytest.mark.integration

DASHBOARD = json.loads((ROOT / "deploy" / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def bundle_with_reference(tmp_path: Path) -> Path:
    """The bundle that ships, which says that every label is as frequent as every other."""
    folder = tmp_path / "books"
    shutil.copytree(ROOT / "model" / "bundles" / "books", folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["reference"] = {
        task["name"]: [1 / len(task["labels"])] * len(task["labels"]) for task in manifest["tasks"] if task["labels"]
    }
    text = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / f"{MANIFEST}.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
    return folder


def queries() -> Iterator[tuple[str, str]]:
    """Title and query of every panel, as Grafana asks for all pods."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], query.replace("$job", ".*").replace("$pod", ".*")


def test_every_panel_shows_data_and_every_rule_is_evaluated(
    surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]], bundle_with_reference: Path
) -> None:
    """A real Prometheus beside the real service: each panel's query has numbers, each rule is sound, none of them rings."""
    program = prometheus.find("prometheus")
    if program is None:
        pytest.skip("prometheus is not there: `python -m tests.infrastructure prepare` fetches it on Debian")
    port = free_port()
    surroundings.overrides |= {
        "HTTP__PORT": str(port),
        "KAFKA__PROPERTIES": json.dumps({"statistics.interval.ms": 1_000}),
        "MODEL__BUNDLE": str(bundle_with_reference),
    }
    first, rest = two_thousand_listings[:1_500], two_thousand_listings[1_500:]
    with RunningService(surroundings) as service, PrometheusServer(program, service_ports=[port]) as watching:
        service.wait_ready()
        publish(surroundings, first)
        wait_for_answers(surroundings, len(first))
        publish(surroundings, [{**one, "price": 1.0, "version": 2**40} for one in rest[:100]] + rest)
        send_raw(surroundings, b"a-1", b"no listing")
        wait_for_answers(surroundings, len(two_thousand_listings) + 101)

        def empty() -> list[tuple[str, str]]:
            return [(title, query) for title, query in queries() if not watching.query(query)]

        with suppress(TimeoutError):  # so that the failure says which are empty
            wait_until(lambda: not empty(), "every panel has data")
        assert empty() == []
        wait_until(lambda: all(rule["health"] == "ok" for rule in watching.rules()), "every rule was evaluated")
        ringing = [rule["name"] for rule in watching.rules() if rule["state"] == "firing"]
    assert ringing == []


def test_a_stuck_service_says_where_before_it_is_restarted(surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """/livez of a pipeline that hangs fails within its deadline, and the log has the line at which each thread stands."""
    monkeypatch.setenv("FAILPOINT", "after_predict:sleep=60:1")
    with RunningService(surroundings, HEALTH__STALL_SECONDS="2") as service:
        service.wait_ready()
        send_raw(surroundings, b"a-1", None)
        started = time.monotonic()
        wait_until(lambda: service.get("/livez")[0] == 503, "/livez fails", deadline_s=20)
        assert time.monotonic() - started < 15
        [event] = [json.loads(line) for line in service.log().splitlines() if '"event": "stuck"' in line]
    [backend] = [lines for name, lines in event["stacks"].items() if name.startswith("backend")]
    assert any("pipeline.py" in line and line.endswith(" predict") for line in backend)
    assert backend[-1].partition(":")[0].endswith("failpoints.py")


class Collector:
    """Takes OTLP over HTTP and keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Not to the test's output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_the_service_sends_spans_and_carries_contexts_on(surroundings: Surroundings, collector: Collector) -> None:
    """Over real Kafka: a record's context comes out as it came, one without gets the span's that the collector was sent."""
    trace_pb2 = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra `traces` is not installed"
    )
    with RunningService(surroundings, TRACES__ENDPOINT=collector.endpoint) as service:
        service.wait_ready()
        send_raw(surroundings, b"a-1", None, headers=[("traceparent", PARENT)])
        wait_for_answers(surroundings, 1)
        send_raw(surroundings, b"a-2", None)
        enriched, _ = wait_for_answers(surroundings, 2)
        assert service.terminate() == 0
    by_key = {record.key: record.header("traceparent") or "" for record in enriched}
    assert by_key[b"a-1"] == PARENT
    spans = [
        span
        for body in collector.bodies
        for resource in trace_pb2.ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.name for span in spans} == {"batch"}
    assert [link.span_id.hex() for span in spans for link in span.links] == ["00f067aa0ba902b7"]
    assert by_key[b"a-2"].split("-")[1:3] in [[span.trace_id.hex(), span.span_id.hex()] for span in spans]
