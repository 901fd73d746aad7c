"""Collects what is left of a run, for the checker."""

import time
from collections import Counter
from collections.abc import Sequence

from confluent_kafka import KafkaException, TopicPartition
from fastavro.schema import parse_schema

from consumer.schema_registry import ParsedSchema
from tests.faults.checker import History, Violation, check, schema_id
from tests.faults.load import Load
from tests.journey.running import Read, Surroundings, read_topic, reader_of, wait_until

HIDDEN_S_MAX = 52.0  # the longest transaction.timeout.ms of these tests, and two seconds


def answered(surroundings: Surroundings) -> int:
    """How many input records the group has committed the answers of. Cheap, also under load.

    Raises: KafkaException, when the group's coordinator does not answer for 30 s.
    """
    end = time.monotonic() + 30
    while True:
        try:
            return sum(max(0, one.offset) for one in surroundings.bystander.committed(_partitions(surroundings), timeout=10))
        except KafkaException:  # the coordinator is still loading, or was not there yet; a busy machine
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def asked(surroundings: Surroundings) -> int:
    """How many records the input topic holds; none of a transaction, so each offset is a record."""
    return sum(surroundings.bystander.get_watermark_offsets(one, timeout=10)[1] for one in _partitions(surroundings))


def _partitions(surroundings: Surroundings) -> list[TopicPartition]:
    topic = surroundings.topics.input
    return [
        TopicPartition(topic, number) for number in surroundings.bystander.list_topics(topic, timeout=10).topics[topic].partitions
    ]


def wait_for_all_answers(surroundings: Surroundings, *, deadline_s: float = 45.0) -> None:
    """Returns when the offsets of all records of the input topic are committed, and readers can see their answers, or could:
    a transaction that a kill left hanging hides what is behind it until it times out. Raises: TimeoutError.
    """
    servers, topics, wanted = surroundings.bootstrap_servers, surroundings.topics, asked(surroundings)
    wait_until(lambda: answered(surroundings) >= wanted, f"{wanted} records are answered", deadline_s=deadline_s)
    end = time.monotonic() + HIDDEN_S_MAX
    while len(read_topic(servers, topics.output)) + len(read_topic(servers, topics.dead_letter)) < wanted:
        if time.monotonic() > end:
            return  # the checker says what is missing
        time.sleep(0.2)


def collect(surroundings: Surroundings) -> History:
    """All committed records of the three topics, and every hash under the test's prefix."""
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    inputs, enriched, dead = (read_topic(servers, topic) for topic in (topics.input, topics.output, topics.dead_letter))
    return History(inputs, enriched, dead, _stored(surroundings), _schemas(surroundings, [*inputs, *enriched]))


def prove(surroundings: Surroundings, load: Load, what: str, *, allowed: frozenset[str] = frozenset()) -> History:
    """Asserts that nothing is lost, doubled, out of order or stale, once all is answered; prints the figures and the seconds.

    Args:
        allowed: kinds of violations that the guarantee in use permits; they are counted and printed.
    """
    load.stop()
    wait_for_all_answers(surroundings)
    history = collect(surroundings)
    violations = check(history)
    deletions = sum(record.value is None for record in history.inputs)
    print(
        f"\n{what}: {len(history.inputs)} records ({deletions} deletions, {len(history.dead_letters)} dead letters) "
        f"in {time.monotonic() - load.begun_s:.0f} s: {dict(Counter(one.kind for one in violations)) or '0 violations'}"
    )
    forbidden = [one for one in violations if one.kind not in allowed]
    assert forbidden == [], _shown(forbidden)
    assert len(history.inputs) == load.sent
    return history


def _shown(violations: Sequence[Violation]) -> str:
    return "\n".join(str(one) for one in violations[:20]) + f"\n({len(violations)} violations)"


def _stored(surroundings: Surroundings) -> dict[str, dict[str, str]]:
    prefix = surroundings.redis_prefix
    client = reader_of(surroundings.redis_url)
    try:
        keys = list(client.scan_iter(match=f"{prefix}{{*", count=1000))
        return {key.removeprefix(prefix)[1:-1]: client.hgetall(key) for key in keys}
    finally:
        client.close()


def _schemas(surroundings: Surroundings, records: Sequence[Read]) -> dict[int, object]:
    ids = {found for record in records if (found := schema_id(record.value)) is not None}
    known = surroundings.registry.schemas(ids)
    return {number: parse_schema(schema.schema) for number, schema in known.items() if isinstance(schema, ParsedSchema)}
