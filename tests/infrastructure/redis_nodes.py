"""Redis with TLS, and a cluster of Redis nodes: three primaries, one of which has a replica."""

import time
from typing import Any

import redis

from tests.infrastructure import docker_engine
from tests.infrastructure.choose import AsProcess, Choice, InContainer, Unavailable
from tests.infrastructure.containers import redis_node_container
from tests.infrastructure.kafka_secure import Certificates, new_certificates
from tests.infrastructure.processes import redis_node_process
from tests.infrastructure.servers import RedisServer, Runner, ServerError, free_port
from tests.infrastructure.start import UnavailableError, started
from tests.infrastructure.versions import Service

HOST = "127.0.0.1"
SLOTS = 16_384
PRIMARIES = 3
NODE_TIMEOUT_MS = 1_500  # after it a silent node is a failed one
_READY_S = 30.0


class SecureRedisServer(RedisServer):
    """Speaks nothing but TLS; `certificates.authority` is what clients must trust."""

    certificates: Certificates

    @property
    def url(self) -> str:
        return f"rediss://{self.address}/0"

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, ssl_ca_data=self.certificates.authority, socket_timeout=5)

    def _obstacle(self) -> str | None:
        with self.client() as client:
            try:
                client.ping()
            except redis.RedisError as error:
                return str(error)
        return None


def new_node(choice: Choice, *options: str, certificates: Certificates | None = None) -> RedisServer:
    """A Redis on loopback with these options, with TLS where there are certificates; not started.

    Raises: UnavailableError.
    """
    port = free_port()
    files = {} if certificates is None else _files(certificates)
    listen = ["--port", str(port)]
    if certificates is not None:
        listen = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", "authority.pem"]
        listen += ["--tls-cert-file", "server.pem", "--tls-key-file", "server_key.pem"]
    words = [*listen, "--bind", HOST, "--save", "", "--appendonly", "yes", *options]
    runner: Runner
    match choice.services[Service.REDIS]:
        case InContainer(image):
            if docker_engine.host() != HOST:
                raise UnavailableError("a Redis Cluster, or one with TLS, runs on this machine only, not on a remote engine")
            runner = redis_node_container(image, port=port, options=words, files=files)
        case AsProcess(program):
            if certificates is not None:
                raise UnavailableError("a Redis with TLS is started in a container only")
            runner = redis_node_process(program, options=words, files=files)
        case Unavailable(reason):
            raise UnavailableError(reason)
    if certificates is None:
        return RedisServer(runner, name="Redis", host=HOST, port=port)
    server = SecureRedisServer(runner, name="Redis with TLS", host=HOST, port=port)
    server.certificates = certificates
    return server


def new_secure_redis(choice: Choice) -> SecureRedisServer:
    """Raises: UnavailableError."""
    server = new_node(choice, certificates=new_certificates(HOST))
    assert isinstance(server, SecureRedisServer)
    return server


class RedisCluster:
    """Three primaries and a replica of the first, running. `remove` is the end.

    Args:
        tls: between the nodes, too.
    """

    def __init__(self, choice: Choice, *, tls: bool = False) -> None:
        certificates = new_certificates(HOST) if tls else None
        self.authority = certificates.authority if certificates is not None else None
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-announce-ip", HOST]
        options += ["--tls-cluster", "yes", "--tls-replication", "yes"] if tls else []
        # By default 10,000 above the node's: a port that the kernel may have handed to an outgoing connection.
        self._bus = [free_port() for _ in range(PRIMARIES + 1)]
        self.nodes = [new_node(choice, *options, "--cluster-port", str(port), certificates=certificates) for port in self._bus]
        scheme = "rediss+cluster" if tls else "redis+cluster"
        self.url = f"{scheme}://" + ",".join(node.address for node in self.nodes)
        try:
            for node in self.nodes:
                started(node)
            self._join()
        except BaseException:
            self.remove()
            raise

    def client(self, node: RedisServer) -> Any:
        """Any: what it answers to CLUSTER is not typed."""
        if isinstance(node, SecureRedisServer):
            return node.client()
        return redis.Redis.from_url(node.url, socket_timeout=5)

    def ask(self, node: RedisServer, *words: str | int) -> Any:
        """The node's answer. Raises: redis.RedisError."""
        with self.client(node) as client:
            return client.execute_command(*words)

    def node_id(self, node: RedisServer) -> str:
        return str(self.ask(node, "CLUSTER MYID").decode())

    def owner(self, slot: int) -> RedisServer:
        """The primary that serves the slot, as one that runs sees it. Raises: LookupError."""
        asked = next(node for node in self.nodes[1:] if node.is_running())
        for first, last, (_, port, *_), *_ in self.ask(asked, "CLUSTER SLOTS"):
            if first <= slot <= last:
                return self._at(port)
        raise LookupError(f"nobody serves slot {slot}")

    def primaries(self) -> list[RedisServer]:
        """Those that own slots now."""
        ports = {port for _, _, (_, port, *_), *_ in self.ask(self.nodes[1], "CLUSTER SLOTS")}
        return [self._at(port) for port in sorted(ports)]

    def sent_on(self, command: str) -> int:
        """How often the nodes answered this command with a redirection, or another refusal, since they started."""
        found = 0
        for node in self.nodes:
            with self.client(node) as client:
                found += client.info("commandstats").get(f"cmdstat_{command}", {"rejected_calls": 0})["rejected_calls"]
        return found

    def begin_move(self, slot: int) -> tuple[RedisServer, RedisServer]:
        """From where to where: from now on what the slot lacks here is asked for there (ASK)."""
        source = self.owner(slot)
        primaries = self.primaries()
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        self.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.node_id(target))
        return source, target

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """What the slot holds here is there afterwards."""
        while keys := self.ask(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            for key in keys:
                self.ask(source, "MIGRATE", HOST, target.address.rpartition(":")[2], key, 0, 5_000)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """The slot is the target's (MOVED)."""
        for node in (target, source, *(each for each in self.primaries() if each not in (source, target))):
            self.ask(node, "CLUSTER SETSLOT", slot, "NODE", self.node_id(target))

    def _at(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.address.endswith(f":{port}"))

    def is_whole(self) -> bool:
        """All nodes run, know each other and see all slots served."""
        whole = b"cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}".encode()
        try:
            infos = [_bytes(self.ask(node, "CLUSTER INFO")) for node in self.nodes]
        except redis.RedisError:
            return False
        return all(each in info for info in infos for each in whole)

    def revive(self) -> None:
        """All nodes answer and the cluster is whole, whatever was done to it. Raises: ServerError."""
        for node in self.nodes:
            node.revive()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Raises: ServerError."""
        deadline_s = time.monotonic() + _READY_S
        while not self.is_whole():
            if time.monotonic() > deadline_s:
                raise ServerError(f"the Redis cluster was not whole after {_READY_S:g} s:\n{self.nodes[0].log_tail()}")
            time.sleep(0.1)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()

    def _join(self) -> None:
        first, share = self.nodes[0], SLOTS // PRIMARIES + 1
        for node, bus in zip(self.nodes[1:], self._bus[1:], strict=True):
            self.ask(first, "CLUSTER MEET", HOST, node.address.rpartition(":")[2], bus)
        for number, node in enumerate(self.nodes[:PRIMARIES]):
            self.ask(node, "CLUSTER ADDSLOTS", *range(number * share, min(SLOTS, (number + 1) * share)))
        self.wait_until_whole()
        self.ask(self.nodes[-1], "CLUSTER REPLICATE", self.node_id(first))
        self.wait_until_followed()

    def wait_until_followed(self) -> None:
        """Returns when the first primary or its replica, whichever follows now, has the other's data. Raises: ServerError."""
        deadline_s = time.monotonic() + _READY_S
        pair = self.nodes[0], self.nodes[-1]
        while not any(b"master_link_status:up" in _bytes(self.ask(node, "INFO replication")) for node in pair):
            if time.monotonic() > deadline_s:
                raise ServerError("the replica did not follow its primary")
            time.sleep(0.1)


def _bytes(answer: Any) -> bytes:
    """CLUSTER INFO and INFO, which the client parses into a dictionary, as they came."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}:{value}" for name, value in answer.items()).encode()
    return bytes(answer)


def _files(certificates: Certificates) -> dict[str, str]:
    return {
        "authority.pem": certificates.authority,
        "server.pem": certificates.server,
        "server_key.pem": certificates.server_key,
    }
