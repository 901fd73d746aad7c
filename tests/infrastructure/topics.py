"""Topics for one test: names that no other test has, created before the test starts."""

import time
import uuid
from dataclasses import astuple, dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Topics:
    input: str
    output: str
    dead_letter: str


def create_topics(bootstrap_servers: str, *, partitions: int) -> Topics:
    """All three exist, and every partition has a leader.

    Raises: TimeoutError, KafkaException.
    """
    suffix = uuid.uuid4().hex[:10]
    topics = Topics(f"listings-{suffix}", f"enriched-{suffix}", f"dead-letters-{suffix}")
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    new = [NewTopic(name, num_partitions=partitions, replication_factor=1) for name in astuple(topics)]
    for created in admin.create_topics(new, request_timeout=_SECONDS_MAX).values():
        created.result(timeout=_SECONDS_MAX)
    deadline = time.monotonic() + _SECONDS_MAX
    while not all(_has_leaders(admin, name, partitions) for name in astuple(topics)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{topics} were created but had no leaders after {_SECONDS_MAX:.0f} s")
        time.sleep(0.05)
    return topics


def delete_topics(bootstrap_servers: str, topics: Topics) -> None:
    """A broker keeps files open for each partition: a long test run gives them back. Failing is no test's failure."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    for deleted in admin.delete_topics(list(astuple(topics)), request_timeout=5).values():
        try:
            deleted.result(timeout=10)
        except (KafkaException, TimeoutError):
            return  # the test left the broker down; its next user waits for it


def _has_leaders(admin: AdminClient, name: str, partitions: int) -> bool:
    found = admin.list_topics(name, timeout=10).topics[name]
    return len(found.partitions) == partitions and all(each.leader >= 0 for each in found.partitions.values())
