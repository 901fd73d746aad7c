"""Whether the service lives and is ready, and the HTTP server that says so.

Alive means that work goes on, not that a thread answers: /livez fails when the main loop stopped, or when there is work and
none of it gets done, unless a dependency is waited for (a restart would not bring it back). Ready means that every condition
that the service named holds.

The first /livez that fails writes to the log what every thread does: the restart that follows destroys the evidence.
"""

import json
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

log = structlog.get_logger(__name__)

_REQUEST_SECONDS = 5.0
_REQUESTS_MAX = 32  # at once
_DEFAULT_CONDITIONS = ("kafka_assigned", "redis", "model")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe is told, condition to sentence: `reasons` names what is wrong, `holds` what is well and how."""

    ok: bool
    reasons: dict[str, str]
    holds: dict[str, str] = field(default_factory=dict)


class Health:
    """What the service knows of itself; written by its threads, read by probes. Safe to share between threads.

    Args:
        stall_seconds: how long unfinished work may make no progress, and the loop may be silent, before /livez fails.
        conditions: what must hold for the service to be ready; all start as not so.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        stall_seconds: float,
        conditions: tuple[str, ...] = _DEFAULT_CONDITIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stall_seconds = stall_seconds
        self._conditions = dict.fromkeys(conditions, (False, "starting"))
        self._beat_at: float | None = None
        self._progress_at = clock()
        self._unfinished = 0
        self._waiting_for: str | None = None
        self._was_live = True

    def beat(self, now: float | None = None, *, unfinished: int) -> None:
        """The main loop went round once. Until the first beat the service is starting, which has its own deadline.

        Args:
            now: the clock's seconds; None asks the clock.
            unfinished: records read and not committed. Where there were none before, the clock of progress starts now.
        """
        with self._lock:
            self._beat_at = self._clock() if now is None else now
            if unfinished == 0 or self._unfinished == 0:
                self._progress_at = self._beat_at
            self._unfinished = unfinished

    def progress(self, now: float | None = None) -> None:
        """Some work was finished: a batch passed a stage or was committed.

        Args:
            now: the clock's seconds; None asks the clock.
        """
        with self._lock:
            self._progress_at = self._clock() if now is None else now

    def waiting_for(self, dependency: str | None) -> None:
        """A dependency is waited for ("kafka", "redis" …), or no longer (None). The loop must go on beating meanwhile."""
        with self._lock:
            if self._waiting_for is not None and dependency is None:
                self._progress_at = self._clock()  # the time spent waiting was nobody's stall
            self._waiting_for = dependency

    def set_condition(self, name: str, holds: bool, reason: str = "") -> None:
        """One of the conditions of being ready holds, or does not, and why. A new name is a new condition."""
        with self._lock:
            self._conditions[name] = (holds, reason)

    def live(self) -> Verdict:
        """Whether a restart would not help. The first time that it would, the log gets the stack of every thread."""
        with self._lock:
            reasons = self._stuck()
            said, self._was_live = not self._was_live, not reasons
        if reasons and not said:
            log.error("stuck", reasons=reasons, stacks=thread_stacks())
        return Verdict(ok=not reasons, reasons=reasons)

    def _stuck(self) -> dict[str, str]:
        now = self._clock()
        if self._beat_at is None:
            return {}
        silent_seconds, idle_seconds = now - self._beat_at, now - self._progress_at
        if silent_seconds > self._stall_seconds:
            return {"loop": f"the main loop stopped {silent_seconds:.0f} s ago"}
        if self._unfinished and not self._waiting_for and idle_seconds > self._stall_seconds:
            return {"progress": f"{self._unfinished} records wait and none was finished for {idle_seconds:.0f} s"}
        return {}

    def ready(self) -> Verdict:
        """Whether every condition holds and no dependency is waited for."""
        with self._lock:
            reasons = {name: reason or "not so" for name, (holds, reason) in self._conditions.items() if not holds}
            if self._waiting_for is not None:
                reasons.setdefault(self._waiting_for, "waited for")
            holds = {name: reason for name, (well, reason) in self._conditions.items() if well and reason}
            return Verdict(ok=not reasons, reasons=reasons, holds=holds)


def thread_stacks() -> dict[str, list[str]]:
    """What every thread but this one does: its name to `file:line function`, outermost first. No values, which may be secret."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack(stack)
        ]
        for ident, stack in sys._current_frames().items()
        if ident != threading.get_ident()
    }


class HttpServer:
    """A running server; `port` is the one it listens on."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port: int = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Returns within a second; may be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=1)
        self._server.server_close()


def serve(host: str, port: int, health: Health, metrics_registry: CollectorRegistry) -> HttpServer:
    """Answers /livez, /readyz (200 or 503, with reasons as JSON) and /metrics (Prometheus) from a daemon thread.

    Args:
        port: 0 takes any free one.

    Raises:
        OSError: nothing can listen there.
    """
    return HttpServer(_Server(host, port, partial(_Handler, health, metrics_registry)))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, host: str, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(_REQUESTS_MAX)
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Without HTTPServer's question to DNS for its own name, which nobody uses and a pod may wait for."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread; a client above the bound is sent away: nobody can fill the process with threads."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not our error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection: no idle connection holds a thread
    server_version = "enricher"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def __init__(self, health: Health, metrics_registry: CollectorRegistry, *connection: Any) -> None:
        self._health = health
        self._metrics_registry = metrics_registry
        super().__init__(*connection)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._say_verdict(self._health.live())
        elif path == "/readyz":
            self._say_verdict(self._health.ready())
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._say(200, content_type, encode(self._metrics_registry))
        else:
            self._say_json(404, {"error": "expected /livez, /readyz or /metrics"})

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are not events."""

    def _say_verdict(self, verdict: Verdict) -> None:
        self._say_json(
            200 if verdict.ok else 503,
            {"ok": verdict.ok, "reasons": verdict.reasons} | ({"holds": verdict.holds} if verdict.holds else {}),
        )

    def _say_json(self, status: int, body: dict[str, Any]) -> None:
        self._say(status, "application/json", json.dumps(body).encode() + b"\n")

    def _say(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
