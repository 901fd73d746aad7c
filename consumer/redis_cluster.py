"""A Redis Cluster: commands go to the node that owns their key's slot, one pipeline a node, and follow what moves.

redis-py's own cluster pipeline sends what failed once more, command by command: a node that is silent would be waited for once
for each key of a batch. Here a batch waits once, and the caller does it again. A script runs once for each key: of 256 listings
hardly two share one of the 16,384 slots, and a call of one key never meets TRYAGAIN while its slot moves.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, TryAgainError

from consumer.redis_errors import unavailable
from consumer.redis_server import Command, Script, evalsha

_SLOTS: Final = 16_384
_REDIRECTS_MAX = 16  # how often one batch is sent on before the caller hears of it
_ASKED_MAX = 4  # nodes asked which nodes there are, before the caller hears that none answers
_TRY_AGAIN_S = 0.05

Address = str  # host:port, as in a URL
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Place:
    address: Address
    asking: bool = False


class Cluster:
    """A `redis_client.RedisClient`.

    Args:
        seeds: some of its nodes, `host:port` or `host`.
        open_node: a client of the node at that address.
    """

    needs: ClassVar[tuple[str, ...]] = ("PING", "ASKING", "CLUSTER SLOTS")

    def __init__(self, seeds: Sequence[Address], *, open_node: Callable[[Address], redis.Redis]) -> None:
        self._seeds = list(seeds)
        self._open_node = open_node
        self._nodes = {seed: open_node(seed) for seed in self._seeds}
        self._owners: list[Address | None] = []  # of each slot; empty: to be asked for
        self._failed: Address | None = None  # the last one that did not answer
        self._scripts: dict[str | bytes, Script] = {}
        self._lock = threading.Lock()

    def run(self, script: Script, keys: Sequence[str], shared: Sequence[str], of_key: Sequence[Command]) -> list[Any]:
        """A call for each key; see `RedisClient`."""
        self._scripts[script.sha] = script
        commands: list[Command] = [
            ["EVALSHA", script.sha, "1", key, *shared, *said] for key, said in zip(keys, of_key, strict=True)
        ]
        answers = self._ask(lambda: self._send_all(keys, commands))
        return [part for number, answer in enumerate(answers, 1) if answer for part in (number, answer[1])]

    def pipelined(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """See `RedisClient`."""
        return self._ask(lambda: self._send_all([command[1] for command in commands], commands))

    def everywhere(self, script: Script, arguments: Sequence[str]) -> list[Any]:
        """See `RedisClient`."""

        def call() -> list[Any]:
            primaries = sorted({owner for owner in self._slot_owners() if owner is not None})
            return [evalsha(self._node(primary), script, (), arguments) for primary in primaries]

        return self._ask(call)

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            for node in self._nodes.values():
                node.close()

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except redis.RedisError as error:
            with self._lock:
                self._owners = []
                for node in self._nodes.values():
                    node.connection_pool.disconnect(inuse_connections=False)
            raise unavailable(error) from error

    def _send_all(self, keys: Sequence[str], commands: Sequence[Command]) -> list[Any]:
        """Each answer, in order, after following redirections. Raises: redis.RedisError."""
        owners = self._slot_owners()
        answers: list[Any] = [None] * len(commands)
        places = {index: _Place(_owner(owners, key_slot(key.encode()))) for index, key in enumerate(keys)}
        for _ in range(_REDIRECTS_MAX):
            batches: dict[Address, list[int]] = defaultdict(list)
            for index, place in places.items():
                batches[place.address].append(index)
            for address, indexes in batches.items():
                found = self._send(address, [(commands[index], places[index].asking) for index in indexes])
                for index, answer in zip(indexes, found, strict=True):
                    if isinstance(answer, Exception):
                        places[index] = self._next_place(places[index], answer, commands[index])
                    else:
                        answers[index] = answer
                        del places[index]
            if not places:
                return answers
        raise TryAgainError(f"sent on {_REDIRECTS_MAX} times", status_code="TRYAGAIN")

    def _next_place(self, place: "_Place", answer: Exception, command: Command) -> "_Place":
        """Where a command goes that was answered like this. Raises: the answer, where it is no redirection."""
        if isinstance(answer, AskError):  # MovedError is one, too
            moved = isinstance(answer, MovedError)
            if moved:
                self._owners = []  # what else has moved is asked before the next batch
            return _Place(_address(answer.host or _host(place.address), answer.port), asking=not moved)
        if isinstance(answer, NoScriptError):
            self._node(place.address).script_load(self._scripts[command[1]].source)
            return place
        if isinstance(answer, TryAgainError):
            time.sleep(_TRY_AGAIN_S)
            return place
        raise answer

    def _send(self, address: Address, commands: Sequence[tuple[Command, bool]]) -> list[Any]:
        """An answer, or what was answered instead, for each command and whether to say ASKING before it."""
        pipeline: Any = self._node(address).pipeline(transaction=False)
        for command, asking in commands:
            if asking:
                pipeline.execute_command("ASKING")
            pipeline.execute_command(*command)
        try:
            answers = iter(pipeline.execute(raise_on_error=False))
        except (redis.ConnectionError, redis.TimeoutError):
            self._failed = address
            raise
        return [next(answers) if not asking else (next(answers), next(answers))[1] for _, asking in commands]

    def _node(self, address: Address) -> redis.Redis:
        with self._lock:
            if address not in self._nodes:
                self._nodes[address] = self._open_node(address)
            return self._nodes[address]

    def _slot_owners(self) -> list[Address | None]:
        """The primary's address for each slot, asked of a node where it is not known. Raises: redis.RedisError."""
        if owners := self._owners:
            return owners
        with self._lock:
            known = dict.fromkeys([*self._nodes, *self._seeds])
        candidates = sorted(known, key=lambda address: (address == self._failed, random.random()))  # noqa: S311  no secret
        failure: redis.RedisError | None = None
        for address in candidates[:_ASKED_MAX]:
            try:
                node: Any = self._node(address)
                owners = _owners_by(node.execute_command("CLUSTER SLOTS"), _host(address))
            except redis.RedisError as error:
                failure = failure or error
                continue
            with self._lock:
                self._owners = owners
                self._forget(keep={*self._seeds, *(owner for owner in owners if owner is not None)})
            return owners
        assert failure is not None
        raise failure

    def _forget(self, *, keep: set[Address]) -> None:
        for address in self._nodes.keys() - keep:
            with suppress(redis.RedisError):
                self._nodes.pop(address).close()


def _owners_by(answer: Sequence[Any], asked_host: str) -> list[Address | None]:
    """CLUSTER SLOTS: [[first, last, [host, port, id …], replicas …] …]; an empty host is the one that was asked."""
    owners: list[Address | None] = [None] * _SLOTS
    for first, last, (host, port, *_), *_ in answer:
        name = host.decode() if isinstance(host, bytes) else host
        address = _address(name or asked_host, port)
        owners[first : last + 1] = [address] * (last + 1 - first)
    return owners


def _owner(owners: Sequence[Address | None], slot: int) -> Address:
    owner = owners[slot]
    if owner is None:
        raise ClusterDownError(f"Hash slot {slot} not served", status_code="CLUSTERDOWN")
    return owner


def _address(host: str, port: int) -> Address:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(address: Address) -> str:
    return urlsplit(f"//{address}").hostname or ""
