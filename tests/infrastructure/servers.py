"""Kafka, Redis and the schema registry as tests see them: an address that never changes, and ways to break them.

A `Runner` is how a server runs (a container or a process); a `Server` is what it is and how to know that it is ready.
"""

import random
import socket
import time
import urllib.error
import urllib.request
from typing import Protocol

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

READY_SECONDS_MAX = 90.0
_PORTS = range(20_000, 32_000)  # from 32768 on the kernel hands ports to outgoing connections


class ServerError(Exception):
    """A server was not ready by its deadline; the message ends with its log."""


class Runner(Protocol):
    """One server's life. Data survive stop, kill and start; `remove` is the end."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Asks politely (SIGTERM), waits until it has ended."""

    def kill(self) -> None:
        """SIGKILL: no flush, no goodbye."""

    def pause(self) -> None:
        """Freezes it: connections stay open, nothing is answered."""

    def unpause(self) -> None: ...

    def remove(self) -> None: ...

    def is_running(self) -> bool: ...

    def log_tail(self) -> str: ...


class Server:
    """A server at `address` ("host:port", pinned before the first start).

    `start()` returns when it answers; `stop()`, `kill()`, `pause()` and `unpause()` when that is so.
    """

    def __init__(self, runner: Runner, *, name: str, host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        self._runner = runner
        self._name = name

    def start(self) -> None:
        """First start or start again after `stop` or `kill`.

        Raises: ServerError.
        """
        self._runner.start()
        self.wait_until_ready()

    def stop(self) -> None:
        self._runner.stop()

    def kill(self) -> None:
        self._runner.kill()

    def pause(self) -> None:
        self._runner.pause()

    def unpause(self) -> None:
        self._runner.unpause()

    def remove(self) -> None:
        self._runner.remove()

    def revive(self) -> None:
        """It answers, whatever was done to it before: unpauses or starts it as needed.

        Raises: ServerError.
        """
        if self.is_running():
            self._runner.unpause()
            self.wait_until_ready()
        else:
            self.start()

    def is_running(self) -> bool:
        return self._runner.is_running()

    def log_tail(self) -> str:
        return self._runner.log_tail()

    def wait_until_ready(self, timeout_seconds: float = READY_SECONDS_MAX) -> None:
        """Raises: ServerError."""
        deadline = time.monotonic() + timeout_seconds
        while (obstacle := self._obstacle()) is not None:
            if time.monotonic() > deadline:
                late = f"{self._name} at {self.address} was not ready after {timeout_seconds:.0f} s ({obstacle})"
                raise ServerError(f"{late}; its log ends:\n{self.log_tail()}")
            if not self._runner.is_running():
                raise ServerError(f"{self._name} ended while it started; its log ends:\n{self.log_tail()}")
            time.sleep(0.1)

    def _obstacle(self) -> str | None:
        """None when the server answers as its clients expect, else what is still wrong. Returns within seconds."""
        return _no_connection(self.address)


class KafkaServer(Server):
    @property
    def bootstrap_servers(self) -> str:
        return self.address

    def _obstacle(self) -> str | None:
        if refused := _no_connection(self.address):
            return refused  # asking librdkafka before that would fill the output with its complaints
        try:
            topics = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=5).topics
        except KafkaException as error:
            return str(error)
        # A broker that was paused is fenced by its own controller: until that is over it answers, and leads nothing.
        leaderless = sum(one.leader < 0 for topic in topics.values() for one in topic.partitions.values())
        return f"{leaderless} partitions have no leader" if leaderless else None


class RedisServer(Server):
    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def _obstacle(self) -> str | None:
        client = redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2)
        try:
            client.ping()
        except redis.RedisError as error:
            return str(error)
        finally:
            client.close()
        return None


class RegistryServer(Server):
    @property
    def url(self) -> str:
        """The base of Confluent's API."""
        return f"http://{self.address}/apis/ccompat/v7"

    def _obstacle(self) -> str | None:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            return str(error)
        except OSError as error:
            return str(error)


_handed_out: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that this run was not given before: its server may not have started yet, or be
    stopped by a test. Below 32768, where no outgoing connection takes it meanwhile.

    Raises: ServerError.
    """
    for _ in range(200):
        port = random.choice(_PORTS)
        if port not in _handed_out and not _is_taken(port):
            _handed_out.add(port)
            return port
    raise ServerError(f"no free port found between {_PORTS.start} and {_PORTS.stop} in 200 tries")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return True
    return False


def _no_connection(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return None
    except OSError as error:
        return str(error)
