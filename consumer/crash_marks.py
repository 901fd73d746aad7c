"""Where processes of a group began, in Redis: what a successor learns of those that died. One small hash a group."""

from consumer.batches import Partition
from consumer.redis_client import open_redis


class CrashMarks:
    """`<key_prefix>crashes:<group>`: a field a partition, `topic/partition`. Safe to share between threads.

    Every call is one round trip, and raises DependencyUnavailable when the store does not answer or refuses.
    """

    def __init__(self, url: str, *, key_prefix: str, group_id: str, ca: str | None = None) -> None:
        self._key = f"{key_prefix}crashes:{group_id}"
        self._client = open_redis(url, ca=ca)

    def read(self, partition: Partition) -> str | None:
        """What stands there; None when nothing does."""
        (found,) = self._client.pipelined([("HGET", self._key, _field(partition))])
        return None if found is None else str(found.decode())

    def write(self, partition: Partition, mark: str | None) -> None:
        """Replaces what stands there; None removes it."""
        field = _field(partition)
        self._client.pipelined([("HDEL", self._key, field) if mark is None else ("HSET", self._key, field, mark)])

    def close(self) -> None:
        """Closes all connections; a later call would open new ones."""
        self._client.close()


def _field(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
