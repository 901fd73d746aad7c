"""When the service calls itself alive and ready, and how it says so."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from consumer.health import Health, HttpServer, Verdict, serve

STALL_SECONDS = 120.0


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(stall_seconds=STALL_SECONDS, clock=clock)


def all_holds(health: Health) -> None:
    for name in ("kafka_assigned", "redis", "model"):
        health.set_condition(name, True)


def test_a_service_that_starts_is_alive_and_not_ready(health: Health, clock: Clock) -> None:
    """A service that starts is alive, however long that takes, and not ready; each missing condition is named."""
    clock.wait(10 * STALL_SECONDS)
    assert health.live() == Verdict(ok=True, reasons={})
    assert health.ready() == Verdict(ok=False, reasons={"kafka_assigned": "starting", "redis": "starting", "model": "starting"})


def test_a_service_is_ready_when_every_condition_holds(health: Health) -> None:
    """A service is ready when every condition holds, and not when one ceases to; its reason is given."""
    all_holds(health)
    assert health.ready() == Verdict(ok=True, reasons={})
    health.set_condition("kafka_assigned", False, "the group is rebalancing")
    assert health.ready() == Verdict(ok=False, reasons={"kafka_assigned": "the group is rebalancing"})


def test_work_without_progress_fails_liveness(health: Health, clock: Clock) -> None:
    """A loop that goes round while records wait and none is finished is not alive."""
    health.beat(unfinished=3)
    clock.wait(STALL_SECONDS)
    health.beat(unfinished=3)
    assert health.live().ok
    clock.wait(1)
    health.beat(unfinished=3)
    assert health.live() == Verdict(ok=False, reasons={"progress": "3 records wait and none was finished for 121 s"})
    health.progress()
    assert health.live().ok


def test_the_first_failure_says_what_every_thread_does(health: Health, clock: Clock) -> None:
    """The first /livez that fails logs every thread's stack, so that a restart destroys no evidence; the next ones do not."""
    stuck_here = threading.Event()
    thread = threading.Thread(target=stuck_here.wait, name="backend")
    thread.start()
    try:
        with capture_logs() as logs:
            health.beat(unfinished=3)
            assert health.live().ok
            assert logs == []
            clock.wait(STALL_SECONDS + 1)
            assert not health.live().ok
            assert not health.live().ok
            [event] = logs
            assert (event["event"], event["log_level"]) == ("stuck", "error")
            assert event["reasons"] == {"loop": "the main loop stopped 121 s ago"}
            [stack] = [lines for name, lines in event["stacks"].items() if name == f"backend ({thread.ident})"]
            assert stack[-1].endswith(" wait")
            assert "threading.py:" in stack[-1]
            health.beat(unfinished=0)
            assert health.live().ok
            clock.wait(STALL_SECONDS + 1)
            assert not health.live().ok
            assert len(logs) == 2
    finally:
        stuck_here.set()
        thread.join()


def test_progress_may_be_told_with_its_time(health: Health, clock: Clock) -> None:
    """Progress may be told with the time at which it was made."""
    health.beat(clock.now, unfinished=3)
    clock.wait(STALL_SECONDS + 1)
    health.beat(unfinished=3)
    health.progress(clock.now - 1)
    assert health.live().ok


def test_a_quiet_topic_is_no_stall(health: Health, clock: Clock) -> None:
    """Without work no progress is expected, and the clock starts with the first record after a quiet time."""
    health.beat(unfinished=0)
    clock.wait(10 * STALL_SECONDS)
    health.beat(unfinished=5)
    assert health.live().ok
    clock.wait(STALL_SECONDS - 1)
    health.beat(unfinished=5)
    assert health.live().ok


def test_a_dependency_that_is_waited_for_is_no_stall(health: Health, clock: Clock) -> None:
    """While a dependency is waited for the service is alive and not ready, and has its time again afterwards."""
    all_holds(health)
    health.beat(unfinished=3)
    health.waiting_for("redis")
    clock.wait(10 * STALL_SECONDS)
    health.beat(unfinished=3)
    assert health.live().ok
    assert health.ready() == Verdict(ok=False, reasons={"redis": "waited for"})
    health.waiting_for(None)
    assert health.live().ok
    assert health.ready().ok
    clock.wait(STALL_SECONDS + 1)
    health.beat(unfinished=3)
    assert not health.live().ok


def test_a_loop_that_stopped_fails_liveness(health: Health, clock: Clock) -> None:
    """A main loop that stopped is not alive, with work or without, whatever is waited for."""
    health.beat(unfinished=0)
    health.waiting_for("kafka")
    clock.wait(STALL_SECONDS + 1)
    assert health.live() == Verdict(ok=False, reasons={"loop": "the main loop stopped 121 s ago"})


@pytest.fixture
def server(health: Health) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Counter("books_read", "Books read.", registry=registry).inc(3)
    server = serve("127.0.0.1", 0, health, registry)
    yield server
    server.close()


def get(server: HttpServer, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers["Content-Type"], answer.read().decode()


def test_probes_are_answered_with_their_reasons(server: HttpServer, health: Health, clock: Clock) -> None:
    """/livez and /readyz answer 200 or 503, and name the reasons in JSON; /readyz also what runs the model, and why."""
    health.beat(unfinished=1)
    status, content_type, body = get(server, "/livez")
    assert (status, content_type, json.loads(body)) == (200, "application/json", {"ok": True, "reasons": {}})
    status, _, body = get(server, "/readyz?verbose")
    assert (status, json.loads(body)["reasons"]["redis"]) == (503, "starting")
    all_holds(health)
    health.set_condition("model", True, "books@1.0.0 on onnxruntime: model.backend asks for it")
    status, _, body = get(server, "/readyz")
    assert (status, json.loads(body)["holds"]) == (200, {"model": "books@1.0.0 on onnxruntime: model.backend asks for it"})
    clock.wait(STALL_SECONDS + 1)
    assert get(server, "/livez")[0] == 503


def test_metrics_are_given_in_the_text_format(server: HttpServer) -> None:
    """/metrics gives what the registry holds in Prometheus' text format."""
    status, content_type, body = get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert "books_read_total 3.0" in body


def test_other_paths_are_not_found(server: HttpServer) -> None:
    """Any other path is not found, and the answer says what there is."""
    assert get(server, "/secrets")[0] == 404
    assert "expected /livez, /readyz or /metrics" in get(server, "/")[2]


@pytest.mark.parametrize("request_line", [b"POST /livez", b"DELETE /metrics", b"GARBAGE", b"GET " + b"x" * 100_000])
def test_anything_but_a_get_is_refused_without_a_traceback(server: HttpServer, request_line: bytes) -> None:
    """Other methods and broken requests get an error status, and nothing about the code behind it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request_line + b" HTTP/1.0\r\n\r\n")
        answer = client.makefile("rb").read().decode()
    assert any(status in answer for status in ("400", "414", "501"))
    assert "Traceback" not in answer
    assert ".py" not in answer


def test_a_silent_client_does_not_keep_others_waiting(server: HttpServer) -> None:
    """A client that connects and says nothing keeps nobody from being answered."""
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get(server, "/livez")[0] == 200


def test_a_closed_server_listens_no_more(server: HttpServer) -> None:
    """After close nothing listens, and closing again is allowed."""
    server.close()
    server.close()
    with pytest.raises(OSError, match=r".+"), socket.create_connection(("127.0.0.1", server.port), timeout=1):
        pass


def test_a_port_that_is_taken_is_an_error(server: HttpServer, health: Health) -> None:
    """A port that is taken is an error at once."""
    with pytest.raises(OSError, match="in use"):
        serve("127.0.0.1", server.port, health, CollectorRegistry())
