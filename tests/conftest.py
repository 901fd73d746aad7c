"""Fixtures for real servers, started on first use, and the rule that CI accepts no skipped integration test.

Which servers: `python -m tests.infrastructure status`. What this machine lacks is skipped with the reason.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.infrastructure.choose import Choice
from tests.infrastructure.prepare import choose_without_changes
from tests.infrastructure.redis_nodes import RedisCluster, SecureRedisServer, new_secure_redis
from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer, Server
from tests.infrastructure.start import UnavailableError, new_kafka, new_redis, new_registry, started
from tests.infrastructure.topics import Topics, create_topics, delete_topics

AnyServer = TypeVar("AnyServer", bound=Server)


@pytest.fixture(scope="session")
def infrastructure() -> Choice:
    """What each server of this run is; for tests that need a server of their own: `new_kafka(infrastructure)`."""
    return choose_without_changes()


@pytest.fixture(scope="session")
def kafka_broker(infrastructure: Choice) -> Iterator[KafkaServer]:
    """The broker all tests share. One that stops it starts it again before it ends."""
    yield from _running(lambda: new_kafka(infrastructure))


@pytest.fixture(scope="session")
def redis_server(infrastructure: Choice) -> Iterator[RedisServer]:
    """The store all tests share; keep to keys under `redis_prefix`."""
    yield from _running(lambda: new_redis(infrastructure))


@pytest.fixture(scope="session")
def secure_redis(infrastructure: Choice) -> Iterator[SecureRedisServer]:
    """A store that speaks nothing but TLS."""
    yield from _running(lambda: new_secure_redis(infrastructure))


@pytest.fixture(scope="session")
def _redis_cluster(infrastructure: Choice) -> Iterator[RedisCluster]:
    try:
        cluster = RedisCluster(infrastructure)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.remove()


@pytest.fixture
def redis_cluster(_redis_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """Three primaries, one replica, whole before and after the test; keep to keys under `redis_prefix`."""
    yield _redis_cluster
    _redis_cluster.revive()


@pytest.fixture(scope="session")
def registry_server(infrastructure: Choice) -> Iterator[RegistryServer]:
    """The schema registry all tests share; it forgets its schemas when it is stopped."""
    yield from _running(lambda: new_registry(infrastructure))


_started_servers: list[Server] = []


def _running(make: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    try:
        server = make()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    started(server)
    _started_servers.append(server)
    yield server
    _started_servers.remove(server)
    server.remove()


@pytest.fixture(autouse=True)
def _servers_answer_after_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault test that fails half-way leaves a server paused or stopped: the next test must not pay for it."""
    yield
    if request.node.get_closest_marker("integration"):
        for server in _started_servers:
            server.revive()


@pytest.fixture(scope="session")
def bootstrap_servers(kafka_broker: KafkaServer) -> str:
    return kafka_broker.bootstrap_servers


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture(scope="session")
def registry_url(registry_server: RegistryServer) -> str:
    """The base of Confluent's API, `…/apis/ccompat/v7`."""
    return registry_server.url


@pytest.fixture
def topics(kafka_broker: KafkaServer) -> Iterator[Callable[..., Topics]]:
    """`topics(partitions=4)` creates an input, an output and a dead-letter topic that are this test's alone."""
    made: list[Topics] = []

    def create(*, partitions: int = 4) -> Topics:
        made.append(create_topics(kafka_broker.bootstrap_servers, partitions=partitions))
        return made[-1]

    yield create
    kafka_broker.revive()
    for each in made:
        delete_topics(kafka_broker.bootstrap_servers, each)


@pytest.fixture
def redis_prefix() -> str:
    """A key prefix that no other test has."""
    return f"test-{uuid.uuid4().hex[:10]}:"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets are not there: expected the folder ../shared/data beside the checkout")
    return folder


_skipped_integration_tests: list[tuple[str, str]] = []


def _skips_are_failures() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("REQUIRE_INTEGRATION") == "1"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "integration" in report.keywords and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped_integration_tests.append((report.nodeid, reason))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped_integration_tests and _skips_are_failures() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _skipped_integration_tests:
        return
    count = len(_skipped_integration_tests)
    if _skips_are_failures():
        terminalreporter.section("integration tests were skipped: the run FAILS", red=True, bold=True)
        terminalreporter.line(f"{count} skipped, which CI=true or REQUIRE_INTEGRATION=1 does not allow:")
    else:
        terminalreporter.section("integration tests were NOT run", yellow=True, bold=True)
        terminalreporter.line(f"{count} skipped; nothing is proved about a real Kafka, Redis or schema registry:")
    for nodeid, reason in _skipped_integration_tests[:20]:
        terminalreporter.line(f"  {nodeid}: {reason}")
