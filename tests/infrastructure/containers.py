"""The three servers in Docker containers, by testcontainers, on official or home-built images alike."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

from tests.infrastructure import docker_engine, kafka_settings
from tests.infrastructure.kafka_secure import SecureKafkaServer, new_certificates, secured
from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer, ServerError, free_port

STOP_SECONDS_MAX = 30
_KAFKA_FOLDER = PurePosixPath("/tmp/kafka-test")


class ContainerRunner:
    """A `servers.Runner`: a container whose host port is pinned, so that a start after a stop keeps its address.

    testcontainers' own `stop()` removes the container; here it stays, with its data, until `remove()`.
    """

    def __init__(
        self,
        image: str,
        *,
        port: int,
        container_port: int,
        environment: dict[str, str],
        command: list[str] | None = None,
        entrypoint: list[str] | None = None,
        network: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self._container = DockerContainer(image, env=environment)
        if folder is not None:  # a place of this machine for its data
            self._container.with_volume_mapping(str(folder), str(_KAFKA_FOLDER), "rw")
        self._container.with_kwargs(labels=docker_engine.owner_label(), entrypoint=entrypoint, network_mode=network)
        if command is not None:
            self._container.with_command(command)
        if network is None:
            self._publish(port, container_port)
        self._created = False

    def _publish(self, port: int, container_port: int) -> None:
        # On loopback only: these servers ask for no password. A remote engine has to publish on all its addresses.
        local = ("127.0.0.1", os.environ.get("TEST_SERVERS_HOST"))
        interface = docker_engine.host() if docker_engine.host() in local else "0.0.0.0"
        self._container.ports[f"{container_port}/tcp"] = (interface, port)  # type: ignore[assignment]

    def start(self) -> None:
        try:
            if self._created:
                self._container.get_wrapped_container().start()
            else:
                self._created = True
                self._container.start()
        except DockerException as error:
            raise ServerError(f"{self._container.image}: Docker could not start it: {error}") from error

    def stop(self) -> None:
        self.unpause()  # Docker neither stops nor kills what is paused
        self._container.get_wrapped_container().stop(timeout=STOP_SECONDS_MAX)

    def kill(self) -> None:
        self.unpause()
        if self.is_running():
            container = self._container.get_wrapped_container()
            container.kill()
            container.wait(timeout=STOP_SECONDS_MAX)

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def unpause(self) -> None:
        if self._status() == "paused":
            self._container.get_wrapped_container().unpause()

    def remove(self) -> None:
        self._container.stop()  # testcontainers': removes by force, and closes its client

    def is_running(self) -> bool:
        return self._status() in ("running", "paused", "created", "restarting")

    def log_tail(self) -> str:
        return self._container.get_wrapped_container().logs(tail=30).decode(errors="replace")

    def _status(self) -> str:
        container = self._container.get_wrapped_container()
        container.reload()
        return str(container.status)


def _kafka_environment(host: str, port: int) -> dict[str, str]:
    """Of a broker in a container: where the official image, and ours, have things."""
    return kafka_settings.environment(
        listen_host="0.0.0.0",
        advertised_host=host,
        port=port,
        controller_port=9093,
        folder=_KAFKA_FOLDER,
        java="java",
        libs=PurePosixPath("/opt/kafka/libs"),
    )


def kafka_container(image: str, *, folder: Path | None = None) -> KafkaServer:
    """A broker in a container, its data in `folder` if given; not started."""
    host, port = docker_engine.host(), free_port()
    environment = _kafka_environment(host, port)
    # The broker listens on the port it advertises, inside as outside: one listener serves both.
    runner = ContainerRunner(
        image,
        port=port,
        container_port=port,
        environment=environment,
        command=[kafka_settings.START_SCRIPT],
        entrypoint=["sh", "-c"],  # the official image's own entrypoint would run its own start script
        folder=folder,
    )
    return KafkaServer(runner, name="Kafka", host=host, port=port)


def secure_kafka_container(image: str, folder: Path) -> SecureKafkaServer:
    """A broker that asks for TLS and a password; not started. The authority's certificate goes into `folder`."""
    host, port = docker_engine.host(), free_port()
    certificates = new_certificates(host)
    plain = _kafka_environment(host, port)
    environment, script = secured(plain, certificates, host=host, port=port)
    runner = ContainerRunner(
        image, port=port, container_port=port, environment=environment, command=[script], entrypoint=["sh", "-c"]
    )
    server = SecureKafkaServer(runner, name="Kafka with TLS", host=host, port=port)
    server.authority = folder / "authority.pem"
    server.authority.write_text(certificates.authority, encoding="ascii")
    return server


def redis_container(image: str) -> RedisServer:
    """A store in a container that keeps its data over stop and kill; not started."""
    host, port = docker_engine.host(), free_port()
    command = ["redis-server", "--protected-mode", "no", "--save", "", "--appendonly", "yes", "--dir", "/tmp"]
    runner = ContainerRunner(image, port=port, container_port=6379, environment={}, command=command)
    return RedisServer(runner, name="Redis", host=host, port=port)


def redis_node_container(image: str, *, port: int, options: Sequence[str], files: Mapping[str, str]) -> ContainerRunner:
    """A Redis at `port` of this machine's own network, where nodes of a cluster find each other as clients find them.

    Args:
        files: name in /tmp to contents.
    """
    write = "".join(f'printf %s "$FILE_{number}" > /tmp/{name}; ' for number, name in enumerate(files))
    return ContainerRunner(
        image,
        port=port,
        container_port=port,
        environment={f"FILE_{number}": text for number, text in enumerate(files.values())},
        command=[f"{write}cd /tmp; exec redis-server {shlex.join(options)}"],
        entrypoint=["sh", "-c"],
        network="host",
    )


def registry_container(image: str) -> RegistryServer:
    """A schema registry in a container, in memory: after a start it is empty. Not started."""
    host, port = docker_engine.host(), free_port()
    environment = {"QUARKUS_HTTP_PORT": "8080", "JAVA_TOOL_OPTIONS": "-Xmx512m"}
    runner = ContainerRunner(image, port=port, container_port=8080, environment=environment)
    return RegistryServer(runner, name="the schema registry", host=host, port=port)
