"""The Docker engine: is there one, install Debian's, start it in the background, stop the one we started."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import APIError, DockerException

from tests.infrastructure import notes
from tests.infrastructure.commands import SetupError, Stopwatch
from tests.infrastructure.debian import apt_install, is_root_on_debian
from tests.infrastructure.paths import log_folder, tail

LABEL = "listing-enricher.owner"  # on every container of ours; its value is the machine and process id of the test run
_NOTE = "dockerd"


@contextmanager
def client(timeout_seconds: float = 60) -> Iterator[docker.DockerClient]:
    """Raises: DockerException when no engine answers."""
    connected = docker.from_env(timeout=timeout_seconds)
    try:
        yield connected
    finally:
        connected.close()


def version() -> str | None:
    """The engine's version, or None when none answers."""
    try:
        with client(timeout_seconds=10) as engine:
            return str(engine.version()["Version"])
    except (DockerException, requests.RequestException):
        return None


def host() -> str:
    """Where published ports are reached: this machine, unless DOCKER_HOST names another.

    TEST_SERVERS_HOST names another address of this machine, one that pods of a cluster can reach too.
    """
    if named := os.environ.get("TEST_SERVERS_HOST"):
        return named
    address = urlsplit(os.environ.get("DOCKER_HOST", ""))
    return address.hostname or "127.0.0.1" if address.scheme in ("tcp", "ssh", "http", "https") else "127.0.0.1"


def can_start() -> bool:
    """dockerd is installed and we are root. Who sets DOCKER_HOST means another engine than one of ours."""
    return shutil.which("dockerd") is not None and os.geteuid() == 0 and "DOCKER_HOST" not in os.environ


def can_install() -> bool:
    return shutil.which("dockerd") is None and is_root_on_debian() and "DOCKER_HOST" not in os.environ


def install() -> None:
    """Raises: SetupError."""
    apt_install("docker.io", "debootstrap")


def start(timeout_seconds: float = 60) -> None:
    """dockerd answers, in a session of its own so that it outlives us; its log is in the cache's `logs/dockerd.log`.

    Raises: SetupError.
    """
    log = log_folder() / "dockerd.log"
    with Stopwatch("starting dockerd"):
        with log.open("wb") as output:
            daemon = subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        notes.write(_NOTE, daemon.pid)
        deadline = time.monotonic() + timeout_seconds
        while version() is None:
            if daemon.poll() is not None:
                notes.remove(_NOTE)
                raise SetupError(f"dockerd exited {daemon.returncode}, see {log}; it ends:\n{tail(log, 5)}")
            if time.monotonic() > deadline:
                daemon.terminate()
                daemon.wait(timeout=30)
                notes.remove(_NOTE)
                raise SetupError(f"dockerd did not answer after {timeout_seconds:.0f} s, see {log}")
            time.sleep(0.2)
    daemon.returncode = 0  # it is meant to outlive us: without this Popen warns that it still runs


def started_by_us() -> bool:
    return notes.is_running(_NOTE)


def stop(timeout_seconds: float = 30) -> bool:
    """Ends the dockerd that `start` noted, if it still runs; True when there was one."""
    return notes.end(_NOTE, signal.SIGTERM, timeout_seconds)


def owner_label() -> dict[str, str]:
    """The machine is part of it: several may share an engine, and process ids mean nothing across them."""
    return {LABEL: f"{socket.gethostname()}/{os.getpid()}"}


def remove_containers(*, only_of_ended_runs: bool) -> int:
    """Removes containers of ours and returns how many; those of a test run that still goes on can be spared."""
    removed = 0
    with client() as engine:
        for container in engine.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            machine, _, owner = container.labels[LABEL].rpartition("/")
            if machine != socket.gethostname() or (only_of_ended_runs and notes.process_exists(int(owner))):
                continue
            try:
                container.remove(force=True, v=True)
            except APIError:  # its own run is removing it at this moment
                continue
            removed += 1
    return removed
