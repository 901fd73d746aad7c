"""The service as a process of its own, and readers of what it leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fastavro
import redis
from confluent_kafka import Consumer, Message, TopicPartition
from redis.cluster import ClusterNode

from consumer.codec import FRAME, SOURCE_HEADER
from consumer.prediction_store import PredictionStore
from consumer.records import State
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.settings import Settings, load_settings
from tests.infrastructure.servers import free_port
from tests.infrastructure.topics import Topics

DEADLINE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def wait_until(holds: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Returns as soon as it holds. Raises: TimeoutError naming what was waited for."""
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so after {deadline_s:g} s")
        time.sleep(0.05)


def reader_of(redis_url: str) -> Any:
    """What another reader of the store uses: redis-py's client of the server, or of the cluster."""
    if "+cluster://" not in redis_url:
        return redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5)
    addresses = redis_url.partition("://")[2].rpartition("@")[2].split(",")
    nodes = [ClusterNode(host, int(port)) for host, _, port in (address.partition(":") for address in addresses)]
    return _ClusterReader(nodes)


class _ClusterReader(redis.RedisCluster):
    """Closes the clients of nodes that left the cluster, too, which redis-py leaves to the garbage collector."""

    def __init__(self, nodes: list[ClusterNode]) -> None:
        super().__init__(startup_nodes=nodes, decode_responses=True, socket_timeout=5)
        made = self._made = [node.redis_connection for node in self.get_nodes()]
        make: Callable[..., Any] = self.nodes_manager.create_redis_node

        def keep(*words: Any, **options: Any) -> Any:
            made.append(make(*words, **options))
            return made[-1]

        self.nodes_manager.create_redis_node = keep  # type: ignore[method-assign]

    def close(self) -> None:
        super().close()
        for client in getattr(self, "_made", []):
            if client is not None:
                client.close()


@dataclass
class Surroundings:
    """The servers and names that one test uses."""

    bootstrap_servers: str
    registry_url: str
    redis_url: str
    redis_prefix: str
    topics: Topics
    overrides: dict[str, str] = field(default_factory=dict)

    def environment(self, **overrides: str) -> dict[str, str]:
        """The service's variables; `overrides` are named like `DELIVERY__TRANSACTION_MS`."""
        values = {
            "KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KAFKA__GROUP_ID": f"group-{self.topics.input}",
            "KAFKA__INPUT_TOPIC": self.topics.input,
            "KAFKA__OUTPUT_TOPIC": self.topics.output,
            "KAFKA__DEAD_LETTER_TOPIC": self.topics.dead_letter,
            "KAFKA__PROPERTIES": json.dumps({"session.timeout.ms": 10_000, "topic.metadata.refresh.interval.ms": 5_000}),
            "SCHEMA_REGISTRY__URL": self.registry_url,
            "REDIS__URL": self.redis_url,
            "REDIS__KEY_PREFIX": self.redis_prefix,
            "HTTP__HOST": "127.0.0.1",
            "HTTP__PORT": str(free_port()),
            **self.overrides,
            **overrides,
        }
        # Of a variable and its _FILE only one may be there.
        return {f"CONSUMER_{name}": value for name, value in values.items() if f"{name}_FILE" not in values}

    def settings(self, **overrides: str) -> Settings:
        """The same as validated settings, for code that runs in the test's process."""
        return load_settings(None, self.environment(**overrides))

    @cached_property
    def registry(self) -> SchemaRegistry:
        """A client of the registry, closed with the test."""
        return SchemaRegistry(self.registry_url, {})

    @cached_property
    def bystander(self) -> Consumer:
        """A client of the service's group that never joins it, closed with the test. What it asks about the group an AdminClient
        could be asked, too: but that one crashes where the coordinator has moved or is not there yet (librdkafka 2.16:
        the handler of OffsetFetch asks for a member's coordinator that an AdminClient does not have).
        """
        group_id = self.settings().kafka.group_id
        servers = {"bootstrap.servers": self.bootstrap_servers, "reconnect.backoff.max.ms": 1000, "log_level": 0}
        return Consumer({**servers, "group.id": group_id, "enable.auto.commit": False, "isolation.level": "read_uncommitted"})

    def close(self) -> None:
        """Ends what was opened here."""
        self.registry.close()
        if "bystander" in self.__dict__:
            self.bystander.close()

    def stored(self, listing_ids: list[str]) -> dict[str, State | None]:
        """What Redis holds."""
        store = PredictionStore(self.redis_url, key_prefix=self.redis_prefix, ttl_seconds=None)
        try:
            return dict(zip(listing_ids, store.read(listing_ids), strict=True))
        finally:
            store.close()


def cpu_seconds(pid: int) -> float:
    """A process's user and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """A process's resident memory now."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class RunningService:
    """`python -m consumer run` as a child process. Use as a context manager; it is killed when the test ends."""

    def __init__(self, surroundings: Surroundings, **overrides: str) -> None:
        environment = surroundings.environment(**overrides)
        self._port = int(environment["CONSUMER_HTTP__PORT"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumer", "run"],
            cwd=ROOT,
            env={**kept, **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._log.close()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of the http endpoint; (0, reason) while it does not listen."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self) -> "RunningService":
        """Returns when /readyz says so."""
        wait_until(lambda: self._is_ready(), f"the service is ready; its log:\n{self.log()[-3000:]}")
        return self

    def _is_ready(self) -> bool:
        if (code := self._process.poll()) is not None:
            raise AssertionError(f"the service ended with {code}:\n{self.log()[-3000:]}")
        return self.get("/readyz")[0] == 200

    def terminate(self, *, deadline_s: float = DEADLINE_S) -> int:
        """SIGTERM, and the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(deadline_s=deadline_s)

    def kill(self) -> None:
        """SIGKILL: no goodbye to anybody."""
        self._process.kill()
        self._process.wait(timeout=10)

    def wait(self, *, deadline_s: float = DEADLINE_S) -> int:
        """The exit code, once it ends by itself."""
        return self._process.wait(timeout=deadline_s)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self.pid)

    def memory_mb(self) -> float:
        """Resident memory now."""
        return memory_mb(self.pid)

    def log(self) -> str:
        """What it printed so far."""
        self._log.flush()
        return os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")


@dataclass(frozen=True)
class Read:
    """One record of a topic, read by a `read_committed` reader."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, Any], ...]
    timestamp_ms: int

    def header(self, name: str) -> str | None:
        """The header's value as text."""
        return next((value.decode() for key, value in self.headers if key == name), None)

    @property
    def source(self) -> tuple[int, int]:
        """Partition and offset of the input record that an enriched record answers."""
        text = self.header(SOURCE_HEADER)
        assert text is not None
        _, partition, offset = text.rsplit("/", 2)
        return int(partition), int(offset)


def read_topic(bootstrap_servers: str, topic: str, *, isolation: str = "read_committed") -> list[Read]:
    """All that stands in a topic now, partition after partition, each in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "reader-that-never-commits",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        partitions = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        records, ended = [], set()
        end = time.monotonic() + DEADLINE_S
        while len(ended) < partitions:
            assert time.monotonic() < end, f"{topic}: no end after {DEADLINE_S:g} s"
            for message in consumer.consume(1000, 0.2):
                if message.error() is not None:
                    ended.add(message.partition())
                else:
                    records.append(_read(message))
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()


def _read(message: Message) -> Read:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = message.headers() or []
    return Read(partition, offset, message.key(), message.value(), tuple(headers), message.timestamp()[1])


def wait_for_answers(surroundings: Surroundings, count: int, *, deadline_s: float = DEADLINE_S) -> tuple[list[Read], list[Read]]:
    """Enriched records and dead letters, once there are `count` of both together."""
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    end = time.monotonic() + deadline_s
    while True:
        enriched, dead = read_topic(servers, topics.output), read_topic(servers, topics.dead_letter)
        if len(enriched) + len(dead) >= count:
            return enriched, dead
        if time.monotonic() > end:
            raise TimeoutError(f"expected {count} answers, found {len(enriched)} enriched and {len(dead)} dead letters")
        time.sleep(0.2)


def decode_enriched(surroundings: Surroundings, records: list[Read]) -> list[dict[str, Any] | None]:
    """The events' contents; None for a deletion."""
    registry = surroundings.registry
    events: list[dict[str, Any] | None] = []
    for record in records:
        if record.value is None:
            events.append(None)
            continue
        schema_id = FRAME.unpack_from(record.value)[1]
        schema = registry.schemas([schema_id])[schema_id]
        assert isinstance(schema, ParsedSchema)
        event = fastavro.schemaless_reader(io.BytesIO(record.value[FRAME.size :]), schema.schema, None)
        assert isinstance(event, dict)
        events.append(event)
    return events
