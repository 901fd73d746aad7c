"""From a choice to a running server: the one place that branches between containers and processes."""

from pathlib import Path

from tests.infrastructure.choose import AsProcess, Choice, InContainer, Unavailable
from tests.infrastructure.containers import kafka_container, redis_container, registry_container
from tests.infrastructure.processes import kafka_process, redis_process, registry_process
from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer, Server
from tests.infrastructure.versions import Service


class UnavailableError(Exception):
    """The machine has no such server; the message says why, and tests are skipped with it."""


def new_kafka(choice: Choice, *, folder: Path | None = None) -> KafkaServer:
    """A broker of one's own, not started. The caller calls `start()` and, at the end, `remove()`.

    Args:
        folder: of this machine, for its data; it goes with the broker.

    Raises: UnavailableError.
    """
    match choice.services[Service.KAFKA]:
        case InContainer(image):
            return kafka_container(image, folder=folder)
        case AsProcess(program):
            return kafka_process(program, folder=folder)
        case Unavailable(reason):
            raise UnavailableError(reason)


def new_redis(choice: Choice) -> RedisServer:
    """Raises: UnavailableError."""
    match choice.services[Service.REDIS]:
        case InContainer(image):
            return redis_container(image)
        case AsProcess(program):
            return redis_process(program)
        case Unavailable(reason):
            raise UnavailableError(reason)


def new_registry(choice: Choice) -> RegistryServer:
    """Raises: UnavailableError."""
    match choice.services[Service.REGISTRY]:
        case InContainer(image):
            return registry_container(image)
        case AsProcess(program):
            return registry_process(program)
        case Unavailable(reason):
            raise UnavailableError(reason)


def started(server: Server) -> None:
    """Starts it, and leaves nothing behind when that fails.

    Raises: ServerError.
    """
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
