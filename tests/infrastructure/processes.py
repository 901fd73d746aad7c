"""The three servers as processes of this machine, for where there is no Docker."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.infrastructure import jars, kafka_settings, notes
from tests.infrastructure.paths import log_folder, tail
from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer, ServerError, free_port

STOP_SECONDS_MAX = 30
_NOTE_PREFIX = "server-"


class ProcessRunner:
    """A `servers.Runner`: a process in a session of its own, so that Ctrl-C reaches pytest and not the server first.

    Args:
        folder: removed by `remove()`; the server's data.
    """

    def __init__(self, name: str, argv: Sequence[str], *, environment: Mapping[str, str], cwd: Path, folder: Path) -> None:
        self._name = f"{_NOTE_PREFIX}{name}-{os.getpid()}-{free_port()}"
        self._argv = list(argv)
        self._environment = {**os.environ, **environment}
        self._cwd = cwd
        self._folder = folder
        self._log = log_folder() / f"{name}-{os.getpid()}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.is_running():
            return
        with self._log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    cwd=self._cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{self._argv[0]} could not be started: {error}") from error
        notes.write(self._name, self._process.pid, folder=self._folder)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a paused process would take no other signal
        try:
            self._wait()
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def unpause(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        if self.is_running():
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        return tail(self._log)

    def _signal(self, kind: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, kind)  # the group: while Kafka formats its folder, a shell and a Java

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(timeout=STOP_SECONDS_MAX)
            notes.remove(self._name)


def kafka_process(java: str, *, folder: Path | None = None) -> KafkaServer:
    """A broker as `java -cp …`, its data in `folder` if given; not started."""
    port, folder = free_port(), folder or _data_folder("kafka")
    environment = kafka_settings.environment(
        listen_host="127.0.0.1",
        advertised_host="127.0.0.1",
        port=port,
        controller_port=free_port(),
        folder=folder,
        java=java,
        libs=jars.kafka_folder() / "libs",
    )
    argv = ["sh", "-c", kafka_settings.START_SCRIPT]
    runner = ProcessRunner("kafka", argv, environment=environment, cwd=folder, folder=folder)
    return KafkaServer(runner, name="Kafka", host="127.0.0.1", port=port)


def redis_process(program: str) -> RedisServer:
    """A store as `redis-server`, keeping its data over stop and kill; not started."""
    port, folder = free_port(), _data_folder("redis")
    listen = ["--port", str(port), "--bind", "127.0.0.1"]
    argv = [program, *listen, "--save", "", "--appendonly", "yes", "--dir", str(folder)]
    runner = ProcessRunner("redis", argv, environment={}, cwd=folder, folder=folder)
    return RedisServer(runner, name="Redis", host="127.0.0.1", port=port)


def redis_node_process(program: str, *, options: Sequence[str], files: Mapping[str, str]) -> ProcessRunner:
    """A Redis with these options, run where `files` (name to contents) are; not started."""
    folder = _data_folder("redis-node")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="ascii")
    return ProcessRunner("redis-node", [program, *options], environment={}, cwd=folder, folder=folder)


def registry_process(java: str) -> RegistryServer:
    """A schema registry as `java -jar …`, in memory: after a start it is empty. Not started."""
    port, folder = free_port(), _data_folder("registry")
    environment = {"QUARKUS_HTTP_PORT": str(port), "QUARKUS_HTTP_HOST": "127.0.0.1"}
    argv = [java, "-Xmx512m", f"-Djava.io.tmpdir={folder}", "-jar", "quarkus-run.jar"]
    cwd = jars.registry_folder() / "app"
    runner = ProcessRunner("registry", argv, environment=environment, cwd=cwd, folder=folder)
    return RegistryServer(runner, name="the schema registry", host="127.0.0.1", port=port)


def end_left_over_processes() -> int:
    """Ends servers whose test run was killed before it could do so; returns how many ran."""
    orphans = [name for name in _noted_servers() if not notes.owner_is_running(name)]
    return sum(notes.end(name, signal.SIGTERM, STOP_SECONDS_MAX) for name in orphans)


def end_all_processes() -> int:
    """Ends every server that a test run of ours started, running or not; returns how many ran."""
    return sum(notes.end(name, signal.SIGTERM, STOP_SECONDS_MAX) for name in _noted_servers())


def _noted_servers() -> list[str]:
    return [name for name in notes.names() if name.startswith(_NOTE_PREFIX)]


def _data_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"listing-enricher-{name}-"))
