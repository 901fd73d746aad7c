"""The Kafka edge, reading side: the group's member, its partitions and their positions.

Partitions come and go. Each time one is gained or rewound its *generation* rises, and work begun under an older generation is
dropped: its records belong to another member by now, or will be read again.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # public, and in no __all__

from consumer.client_log import CLIENT_LOG
from consumer.errors import DependencyUnavailable, Fenced
from consumer.records import Headers, InputRecord
from consumer.settings import KafkaSettings

log = structlog.get_logger(__name__)

Partition = tuple[str, int]

RECALL_TIMEOUT_S = 10.0
LAG_TIMEOUT_S = 0.5
BEGIN_TIMEOUT_S = 1.0  # how long the other partitions wait for one that does not know yet where to begin

_REFUSALS = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
)


def client_settings(settings: KafkaSettings) -> dict[str, Any]:
    """What every client of this service has in common; the user's `properties` win."""
    return {"bootstrap.servers": settings.bootstrap_servers, "client.id": "listing-enricher", **settings.properties}


def kafka_error(error: KafkaException) -> KafkaError:
    cause = error.args[0]
    assert isinstance(cause, KafkaError)
    return cause


def partition_counts(settings: KafkaSettings, *, timeout_s: float) -> dict[str, int]:
    """Topic name to its number of partitions, as the cluster says.

    Raises:
        DependencyUnavailable: no broker answered within `timeout_s`.
    """
    told: list[KafkaError] = []
    configuration: dict[str, Any] = {**client_settings(settings), "error_cb": told.append}
    admin = AdminClient(configuration, logger=CLIENT_LOG)
    try:
        topics = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        admin.poll(0)
        # A wrong password or certificate is a time-out to the caller: the cause is only told beside it.
        causes = [one for one in told if one.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)] or [kafka_error(error)]
        raise DependencyUnavailable("kafka", causes[0].str()) from error
    return {name: len(topic.partitions) for name, topic in topics.items()}


def message_bytes_max(settings: KafkaSettings, topics: Iterable[str], *, timeout_s: float) -> dict[str, int]:
    """Topic to its `max.message.bytes`; topics of which the cluster does not say are left out (a right to ask is needed)."""
    admin = AdminClient(client_settings(settings), logger=CLIENT_LOG)
    asked = admin.describe_configs([ConfigResource("topic", topic) for topic in topics], request_timeout=timeout_s)
    found = {}
    for resource, answer in asked.items():
        try:
            found[resource.name] = int(answer.result(timeout=timeout_s)["max.message.bytes"].value)
        except (KafkaException, TimeoutError, KeyError) as error:
            log.warning("message_size_unknown", topic=resource.name, reason=str(error))
    return found


class KafkaSource:
    """The consumer group's member that reads the input topic.

    Args:
        before_revoked: called before partitions are given up, to commit what was answered.
        after_lost: called when partitions went to another member already.
        on_rebalance: told "assigned", "revoked" or "lost" and how many partitions are held now.
        statistics: settings by which the client tells of itself (`client_statistics.py`).
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        before_revoked: Callable[[], None],
        after_lost: Callable[[], None],
        on_rebalance: Callable[[str, int], None],
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        self._topic = settings.input_topic
        self._before_revoked = before_revoked
        self._after_lost = after_lost
        self._on_rebalance = on_rebalance
        self._generations: dict[Partition, int] = {}
        self._resume_at: dict[Partition, int] = {}
        self._generation = 0
        self._paused: set[Partition] = set()  # also of partitions that went meanwhile: the client keeps them paused
        self._early: list[Message] = []  # what a poll that should bring nothing brought all the same
        self._consumer = Consumer(
            {
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                **(statistics or {}),
                **({} if settings.group_protocol == "consumer" else {"partition.assignment.strategy": "cooperative-sticky"}),
                **client_settings(settings),
                "group.id": settings.group_id,
                "group.protocol": settings.group_protocol,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "logger": CLIENT_LOG,
            }
        )
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def poll(self, *, records_max: int, idle_s: float, linger_s: float) -> list[InputRecord]:
        """Waits up to `idle_s` for a first record, then up to `linger_s` for more.

        Raises:
            DependencyUnavailable: the broker refuses, e.g. the topic is not there.
            Fenced: the client cannot go on.
        """
        if paused := self._paused & self._generations.keys():
            self._consumer.resume([TopicPartition(*one) for one in paused])
            self._paused -= paused
        # Until they are handed over messages stay in `_early`: a partition that goes meanwhile takes its own along, and an
        # error loses none.
        if not self._early:
            first = self._call(lambda: self._consumer.poll(idle_s))
            if first is None:
                return []
            self._early.append(first)
        wanted = records_max - len(self._early)
        if wanted > 0:
            more = self._call(lambda: self._consumer.consume(wanted, linger_s))
            self._early.extend(more)
        found, self._early = self._early, [message for message in self._early if message.error() is None]
        for message in found:
            self._raise_error(message)
        self._begin_where_the_group_is()
        messages, self._early = self._early, []
        return [self._record(message) for message in messages]

    def _begin_where_the_group_is(self) -> None:
        """Checks where a partition that is new here begins, and sends it there if it began elsewhere.

        The client asks the group, too. But while a killed member's transaction is open there is no answer (KIP-447), and if
        partitions are assigned meanwhile librdkafka (2.16, `rd_kafka_assignment_apply_offsets`) takes that for "nothing was ever
        committed" and begins by `auto.offset.reset`: it would answer the whole partition again.
        """
        if not (new := self._generations.keys() - self._resume_at.keys()):
            return
        begun: dict[Partition, int] = {}
        for topic, number, offset in map(position_of, self._early):
            if (topic, number) in new:
                begun.setdefault((topic, number), offset)
        committed = self._committed_offsets(begun) if begun else {}
        for partition, offset in begun.items():
            place = committed.get(partition, offset)
            if place < 0:  # nothing was ever committed
                place = offset
            if place != offset or partition not in committed:  # unknown: it comes again, and is asked about again
                self._call(partial(self._consumer.seek, TopicPartition(*partition, place)))
                self._early = [one for one in self._early if (one.topic(), one.partition()) != partition]
            if place != offset:
                log.warning("began_elsewhere", partition=partition[1], began=offset, committed=place)
            if partition in committed:
                self._resume_at[partition] = place

    def _committed_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """What the group committed, negative where it never did; without those that it does not tell now."""
        asked = [TopicPartition(*partition) for partition in partitions]
        try:
            told = self._call(lambda: self._consumer.committed(asked, BEGIN_TIMEOUT_S))
        except DependencyUnavailable:
            return {}
        return {(one.topic, one.partition): one.offset for one in told if one.error is None}

    def keep_alive(self) -> None:
        """Stays in the group while work is stuck: polls with all partitions paused, so that no record comes.

        Pausing throws away what was prefetched; it is for waits of many seconds, not for each batch.
        """
        if flowing := self._generations.keys() - self._paused:
            self._consumer.pause([TopicPartition(*one) for one in flowing])
            self._paused |= flowing
        message = self._call(lambda: self._consumer.poll(0))
        if message is not None:
            self._early.append(message)

    def generation(self, partition: Partition) -> int | None:
        """Rises whenever the partition is gained anew or rewound; None while it belongs to another member."""
        return self._generations.get(partition)

    def rewind(self) -> None:
        """Goes back to what was committed last; records read since then come again, under a new generation."""
        # Of a partition that handed over nothing yet there is no way back: what is kept of it stays.
        self._early = [one for one in self._early if (one.topic(), one.partition()) not in self._resume_at]
        for topic, number in self._generations:
            self._generation += 1
            self._generations[topic, number] = self._generation
            offset = self._resume_at.get((topic, number))
            if offset is not None:
                self._call(partial(self._consumer.seek, TopicPartition(topic, number, offset)))
        log.warning("rewound", positions={f"{t}/{p}": offset for (t, p), offset in self._resume_at.items()})

    def recall(self) -> None:
        """Asks the group where to resume, after a commit whose outcome is unknown; `rewind` goes there. While a transaction with
        offsets of ours is open the group does not answer (KIP-447).

        Raises:
            DependencyUnavailable: no answer yet.
        """
        owned = [TopicPartition(*partition) for partition in self._generations]
        for one in self._call(lambda: self._consumer.committed(owned, RECALL_TIMEOUT_S)) if owned else ():
            if one.error is not None:
                raise DependencyUnavailable("kafka", f"committed: {one.error}")
            if one.offset >= 0:
                self._resume_at[one.topic, one.partition] = one.offset

    def committed(self, positions: Mapping[Partition, int]) -> None:
        """Takes note of a commit: `positions` are the offsets to resume at."""
        self._resume_at.update({p: offset for p, offset in positions.items() if p in self._generations})

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Commits offsets without a transaction (at least once)."""
        try:
            self._consumer.commit(offsets=topic_partitions(positions), asynchronous=False)
        except KafkaException as error:
            raise DependencyUnavailable("kafka", f"commit: {kafka_error(error)}") from error

    def group_metadata(self) -> object:
        """This member's identity, by which a transaction is fenced (KIP-447)."""
        return self._consumer.consumer_group_metadata()

    def lag(self) -> dict[int, int]:
        """Records behind the end, by partition; partitions not read yet are absent.

        The end is the one that the last fetch told. A paused partition is not fetched: its end is asked for.
        """
        lag, broker_answers = {}, True
        for one in self._generations:
            position, place = self._resume_at.get(one), TopicPartition(*one)
            if position is None:
                continue
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            if broker_answers and one in self._paused:
                try:
                    _, high = self._consumer.get_watermark_offsets(place, timeout=LAG_TIMEOUT_S)
                except KafkaException:
                    broker_answers = False
            if high >= 0:
                lag[one[1]] = max(0, high - position)
        return lag

    def close(self) -> None:
        """Leaves the group."""
        self._consumer.close()

    @staticmethod
    def _record(message: Message) -> InputRecord:
        topic, partition, offset = position_of(message)
        return InputRecord(
            topic,
            partition,
            offset,
            message.key(),
            message.value(),
            headers_of(message),
            message.timestamp()[1],
        )

    @staticmethod
    def _raise_error(message: Message) -> None:
        error = message.error()
        if error is None:
            return
        if error.fatal():
            raise Fenced(f"kafka consumer: {error}")
        if error.code() in _REFUSALS:
            raise DependencyUnavailable("kafka", error.str())
        log.warning("kafka_consumer_error", error=error.str(), code=error.name())

    @staticmethod
    def _call(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            cause = kafka_error(error)
            if cause.fatal():
                raise Fenced(f"kafka consumer: {cause}") from error
            raise DependencyUnavailable("kafka", cause.str()) from error

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self._generation += 1
            self._generations[(one.topic, one.partition)] = self._generation
        self._on_rebalance("assigned", len(self._generations))
        log.info("partitions_assigned", partitions=[one.partition for one in partitions])

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._before_revoked()
        self._forget(partitions)
        self._on_rebalance("revoked", len(self._generations))
        log.info("partitions_revoked", partitions=[one.partition for one in partitions])

    def _lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        self._after_lost()
        self._on_rebalance("lost", len(self._generations))
        log.warning("partitions_lost", partitions=[one.partition for one in partitions])

    def _forget(self, partitions: list[TopicPartition]) -> None:
        gone = {(one.topic, one.partition) for one in partitions}
        for partition in gone:
            self._generations.pop(partition, None)
            self._resume_at.pop(partition, None)
        self._early = [message for message in self._early if (message.topic(), message.partition()) not in gone]


def topic_partitions(positions: Mapping[Partition, int]) -> list[TopicPartition]:
    """Offsets to resume at, as the client wants them."""
    return [TopicPartition(topic, partition, offset) for (topic, partition), offset in positions.items()]


def position_of(message: Message) -> tuple[str, int, int]:
    """Topic, partition and offset of a record that was read."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset


def headers_of(message: Message) -> Headers:
    """A record's headers; the client's types allow more forms than it gives on reading."""
    return cast(Headers, tuple(message.headers() or ()))
