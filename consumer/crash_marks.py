"""Where processes of a group began, in Redis: what a successor learns of those that died. One small hash a group."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumer.batches import Partition
from consumer.errors import DependencyUnavailable

_SOCKET_TIMEOUT_S = 5.0


class CrashMarks:
    """`<key_prefix>crashes:<group>`: a field a partition, `topic/partition`. Safe to share between threads.

    Every call is one round trip, and raises DependencyUnavailable when the store does not answer or refuses.
    """

    def __init__(self, url: str, *, key_prefix: str, group_id: str) -> None:
        self._key = f"{key_prefix}crashes:{group_id}"
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            decode_responses=True,
        )

    def read(self, partition: Partition) -> str | None:
        """What stands there; None when nothing does."""
        try:
            found: str | None = self._client.hget(self._key, _field(partition))  # type: ignore[assignment]
        except redis.RedisError as error:
            raise DependencyUnavailable("redis", str(error) or type(error).__name__) from error
        return found

    def write(self, partition: Partition, mark: str | None) -> None:
        """Replaces what stands there; None removes it."""
        try:
            if mark is None:
                self._client.hdel(self._key, _field(partition))
            else:
                self._client.hset(self._key, _field(partition), mark)
        except redis.RedisError as error:
            raise DependencyUnavailable("redis", str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Closes all connections; a later call would open new ones."""
        self._client.close()


def _field(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
