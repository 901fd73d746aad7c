"""One Redis server: scripts by their hash, commands in a pipeline, errors in the service's words."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, TypeVar

import redis
from redis.exceptions import NoScriptError

from consumer.redis_errors import unavailable

T = TypeVar("T")
Command = Sequence[str | bytes]  # name and arguments, or some of these


class Script:
    """Lua source and the hash that Redis knows it by. It answers a flat list: number of a key (from 1), found, number, found …"""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()  # noqa: S324  Redis's name for it, not a safeguard


class OneServer:
    """One Redis server, or one name behind which the present primary stands."""

    needs: ClassVar[tuple[str, ...]] = ("PING",)  # the look at a connection that was idle

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def run(self, script: Script, keys: Sequence[str], shared: Sequence[str], of_key: Sequence[Command]) -> list[Any]:
        """One round trip; see `redis_client.RedisClient`."""
        return self._ask(lambda: evalsha(self._client, script, keys, chain(shared, *of_key)))

    def pipelined(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """One round trip; see `redis_client.RedisClient`."""
        return self._ask(lambda: self._pipelined(commands))

    def everywhere(self, script: Script, arguments: Sequence[str]) -> list[Any]:
        """One answer; see `redis_client.RedisClient`."""
        return [self._ask(lambda: evalsha(self._client, script, (), arguments))]

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def _pipelined(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = pipeline.execute()
        return answers

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except redis.RedisError as error:
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise unavailable(error) from error


def evalsha(client: redis.Redis, script: Script, keys: Sequence[str], arguments: Iterable[str | bytes]) -> Any:
    """Runs a script by its hash, loading it into a server that does not know it. Raises: redis.RedisError."""
    said = [*keys, *arguments]
    try:
        return client.evalsha(script.sha, len(keys), *said)
    except NoScriptError:
        client.script_load(script.source)
        return client.evalsha(script.sha, len(keys), *said)
