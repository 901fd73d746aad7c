"""A full disk under the broker: it dies, is given room, is started again; nothing is lost or doubled."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.faults.history import answered, prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.faults.test_dependencies import PATIENT, goes_on
from tests.faults.watcher import Watcher
from tests.infrastructure.choose import Choice
from tests.infrastructure.servers import KafkaServer
from tests.infrastructure.small_disk import SmallDisk, can_mount, small_disk
from tests.infrastructure.start import UnavailableError, new_kafka, started
from tests.journey.running import Surroundings, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small file system, and an engine on this machine"),
]

DISK_MB = 256
FULL_S = 60.0 if os.environ.get("FAULT_ROUNDS") else 5.0


@pytest.fixture(scope="module")
def disk() -> Iterator[SmallDisk]:
    with small_disk(DISK_MB) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def kafka_broker(infrastructure: Choice, disk: SmallDisk) -> Iterator[KafkaServer]:
    """A broker of this module's own, whose data are on the small disk."""
    try:
        server = new_kafka(infrastructure, folder=disk.folder)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    started(server)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def bootstrap_servers(kafka_broker: KafkaServer) -> str:
    return kafka_broker.bootstrap_servers


@pytest.mark.short_form
def test_a_full_disk_under_the_broker_loses_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, kafka_broker: KafkaServer, disk: SmallDisk
) -> None:
    """Kafka ends itself at the first write that finds no room. The service waits, and goes on when the broker is back."""
    with Replica(surroundings, KAFKA__PROPERTIES=PATIENT) as service:
        service.wait_assigned()
        goes_on(surroundings, service, time.monotonic(), "start")
        disk.fill()
        wait_until(lambda: not kafka_broker.is_running(), "the broker ends for want of room")
        time.sleep(FULL_S)
        assert service.is_running(), "the service ended"
        disk.free()
        kafka_broker.start()
        goes_on(surroundings, service, time.monotonic(), "a full disk")
        prove(surroundings, load, f"the broker's disk full, {FULL_S:g} s without it")
        assert answered(surroundings) == load.sent
        assert service.terminate() == 0
