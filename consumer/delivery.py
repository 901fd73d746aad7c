"""The Kafka edge, writing side: outputs and offsets, and the commit that binds the two.

What a failed call means stands in one place, `_ask`: fatal, to be aborted, or worth asking again.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from threading import Event, Thread
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from consumer import failpoints
from consumer.client_log import CLIENT_LOG
from consumer.errors import DependencyUnavailable, Fenced, TransactionAborted
from consumer.kafka import KafkaSource, Partition, client_settings, kafka_error, topic_partitions
from consumer.plain_producer import MESSAGE_BYTES_MAX, enqueue
from consumer.records import OutputRecord
from consumer.settings import DeliverySettings, KafkaSettings

log = structlog.get_logger(__name__)

CALL_TIMEOUT_S = 10.0
BATCH_BYTES = 1_000_000  # the client's default of `batch.size`
SILENCE_S_MAX = 30.0  # how long one producer is asked without an answer before another is
OVERTIME_S = 2.0  # how much later than its time-out a call may come back
# Shorter than the usual minute: an open transaction of a killed process hides what follows it from readers until it times out.
TRANSACTION_TIMEOUT_MS = 20_000

# What a producer is told whose transaction the broker aborted because it timed out. Nobody else has its id.
_TIMED_OUT_THERE = (KafkaError._FENCED, KafkaError.INVALID_TXN_STATE, KafkaError.INVALID_PRODUCER_ID_MAPPING)

_PRODUCER_DEFAULTS = {
    "compression.type": "lz4",
    "linger.ms": 5,
    "queue.buffering.max.kbytes": 262_144,
    "message.max.bytes": MESSAGE_BYTES_MAX,  # a dead letter is as large as its original
    # A client without a connection looks for a coordinator without making one (librdkafka 2.16: PIDBROKER, "No brokers
    # available"); what connects it is its next look at the topics, by default after up to 5 minutes.
    "topic.metadata.refresh.interval.ms": 10_000,
}


class ExactlyOnce:
    """Outputs and consumer offsets in one transaction: readers of committed data see both or neither (KIP-98, KIP-447).

    `transactional.id` is new with each process. What fences a replaced process is the group's generation, which travels with
    the offsets, so replicas need no stable names. A producer that is fenced nevertheless had a transaction open for longer than
    its time-out, while the broker was away: it is replaced by another, as is one that a call is stuck in, or that does not find
    its coordinator again. The next one has its id, so the broker ends what was open before it lets it begin, instead of hiding
    what follows from readers until that times out. Whether a commit in doubt happened the group knows then.
    """

    def __init__(self, settings: KafkaSettings, *, source: KafkaSource, statistics: Mapping[str, Any] | None = None) -> None:
        self._settings = settings
        self._statistics = statistics or {}
        self._source = source
        self._open = False
        self._committing = False
        self._unusable = False
        self._silent_since_s: float | None = None
        self._transactional_id = f"{settings.transactional_id_prefix}-{uuid.uuid4()}"
        self._producer = self._new_producer()

    def send(self, outputs: Iterable[OutputRecord]) -> None:
        """Puts records into the open transaction, beginning one when there is none.

        Raises:
            TransactionAborted: not all could be queued; call `abort` and rewind, a second `send` would double the first part.
        """
        self._begin()
        self._ask_or_replace("produce", lambda: _produce(self._producer, outputs))

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Ends the transaction together with the group's offsets. Call it again, unchanged, after DependencyUnavailable.

        Raises:
            TransactionAborted: it cannot be committed; call `abort` and rewind. Also where none is open: offsets alone, without
                the answers that `send` put beside them, would skip their records for good.
            DependencyUnavailable: no answer yet; the transaction is still open.
            Fenced: the client cannot go on.
        """
        if not self._open:
            raise TransactionAborted("commit: expected an open transaction with the answers for these offsets, found none")
        if not self._committing:
            offsets, metadata = topic_partitions(positions), self._source.group_metadata()
            self._ask_or_replace("send_offsets_to_transaction", lambda: self._send_offsets(offsets, metadata))
            self._committing = True
            failpoints.reached("after_offsets")
        try:
            self._ask_or_replace("commit_transaction", lambda: self._producer.commit_transaction(CALL_TIMEOUT_S))
        except TransactionAborted:
            self._committing = self._unusable  # a producer that is given up does not say whether it happened
            raise
        self._open = self._committing = False

    def abort(self) -> bool:
        """Drops the open transaction, if any. A commit that had no answer yet is asked about first: it may have happened.

        Returns:
            Whether it was committed after all, or may have been: the group knows where to go on.

        Raises:
            DependencyUnavailable: no answer yet; call it again.
        """
        if self._committing and not self._unusable:
            try:
                self.commit({})
                return True
            except TransactionAborted as error:
                log.warning("commit_failed", reason=str(error))
        in_doubt = self._committing
        if self._open and not self._unusable:
            try:
                # No purge before it: records taken back in flight leave a gap in the sequence, which breaks the next transaction.
                self._ask_or_replace("abort_transaction", lambda: self._producer.abort_transaction(CALL_TIMEOUT_S))
            except TransactionAborted as error:
                log.warning("aborted_by_the_broker", reason=str(error))
        if self._unusable:
            self._producer = self._new_producer()
            self._unusable, self._silent_since_s = False, None
        self._open = self._committing = False
        return in_doubt

    def close(self) -> None:
        """Aborts what is open; never raises, since the broker drops it in any case when it times out."""
        if self._unusable:
            return
        try:
            self.abort()
        except (DependencyUnavailable, TransactionAborted, Fenced) as error:
            log.warning("transaction_left_open", error=str(error))

    def _send_offsets(self, offsets: list[TopicPartition], metadata: object) -> None:
        """On a thread of its own: the client may ignore the time-out and wait for ever, most often after the group's coordinator
        was restarted. What was in the abandoned transaction is never committed; the next producer's beginning ends it.

        Raises:
            KafkaException, or TransactionAborted when the call did not come back.

        Source: github.com/confluentinc/librdkafka/issues/5456 and 5511.
        """
        producer, failed, ended = self._producer, list[KafkaException](), Event()

        def call() -> None:
            try:
                producer.send_offsets_to_transaction(offsets, metadata, CALL_TIMEOUT_S)
            except KafkaException as error:
                failed.append(error)
            finally:
                ended.set()

        Thread(target=call, name="send-offsets", daemon=True).start()
        if not ended.wait(CALL_TIMEOUT_S + OVERTIME_S):
            self._unusable = True
            raise TransactionAborted("send_offsets_to_transaction: no answer, and the client ignores its time-out")
        if failed:
            raise failed[0]

    def _new_producer(self) -> Producer:
        producer = Producer(
            {
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                **_PRODUCER_DEFAULTS,
                **self._statistics,
                **client_settings(self._settings),
                "transactional.id": self._transactional_id,
                "logger": CLIENT_LOG,
            }
        )
        _ask("init_transactions", lambda: producer.init_transactions(CALL_TIMEOUT_S))
        return producer

    def _begin(self) -> None:
        if not self._open:
            self._ask_or_replace("begin_transaction", self._producer.begin_transaction)
            self._open = True

    def _ask_or_replace(self, name: str, call: Callable[[], Any]) -> None:
        """Raises: as `_ask`, and TransactionAborted where this producer is given up; `abort` replaces it."""
        try:
            _ask(name, call)
        except Fenced as error:
            if not (isinstance(error.__cause__, KafkaException) and kafka_error(error.__cause__).code() in _TIMED_OUT_THERE):
                raise
            self._unusable = True
            raise TransactionAborted(str(error)) from error
        except DependencyUnavailable as error:
            now_s = time.monotonic()
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            if now_s < self._silent_since_s + SILENCE_S_MAX:
                raise
            # The client may have no connection left and make none by itself: it waits for a coordinator, and asks nobody for it.
            self._unusable = True
            raise TransactionAborted(f"no answer for {SILENCE_S_MAX:g} s: {error.reason}") from error
        self._silent_since_s = None


class AtLeastOnce:
    """Outputs first, then the offsets: nothing is lost, and what lies between the two may be written twice."""

    def __init__(self, settings: KafkaSettings, *, source: KafkaSource, statistics: Mapping[str, Any] | None = None) -> None:
        self._source = source
        self._failed: list[str] = []
        self._producer = Producer(
            {
                **_PRODUCER_DEFAULTS,
                **(statistics or {}),
                **client_settings(settings),
                "enable.idempotence": True,
                "delivery.report.only.error": True,
                "on_delivery": lambda error, _: self._failed.append(str(error)),
                "logger": CLIENT_LOG,
            }
        )

    def send(self, outputs: Iterable[OutputRecord]) -> None:
        """Hands records to the client; they are on the broker after `commit`."""
        _ask("produce", lambda: _produce(self._producer, outputs))

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Waits for every record sent, then commits the offsets. Call it again after DependencyUnavailable.

        Raises:
            TransactionAborted: the client gave up on a record; rewind.
            DependencyUnavailable: not all are acknowledged yet.
        """
        left = self._producer.flush(CALL_TIMEOUT_S)
        if self._failed:
            raise TransactionAborted(f"a record was not delivered: {self._failed[0]}")
        if left:
            raise DependencyUnavailable("kafka", f"{left} records are not acknowledged after {CALL_TIMEOUT_S:g} s")
        self._source.commit(positions)

    def abort(self) -> bool:
        """Forgets what was not sent yet; what was sent stays, or fails a later commit, which rewinds once more. Always False."""
        # Not what is in flight: its sequence numbers are used up, and a gap in them may break this producer for good.
        self._producer.purge(in_flight=False)
        self._producer.flush(0)
        self._failed.clear()
        return False

    def close(self) -> None:
        """Sends nothing more."""
        self._producer.purge()
        self._producer.flush(0)


Delivery = ExactlyOnce | AtLeastOnce


def open_delivery(
    kafka: KafkaSettings,
    delivery: DeliverySettings,
    *,
    source: KafkaSource,
    batch_bytes_max: int | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> Delivery:
    """The guarantee that the settings ask for; `statistics` as of `KafkaSource`.

    Args:
        batch_bytes_max: the least `max.message.bytes` of the topics written to. The broker holds it against whole batches, so
            many small records together must not exceed it either.

    Raises:
        DependencyUnavailable: the transaction coordinator did not answer.
    """
    if batch_bytes_max is not None and batch_bytes_max < BATCH_BYTES:
        kafka = kafka.model_copy(update={"properties": {"batch.size": batch_bytes_max, **kafka.properties}})
    if delivery.guarantee == "exactly_once":
        return ExactlyOnce(kafka, source=source, statistics=statistics)
    return AtLeastOnce(kafka, source=source, statistics=statistics)


def _ask(name: str, call: Callable[[], Any]) -> None:
    """Makes a call of the client and says what its failure means (librdkafka's INTRODUCTION.md, "Transactional producer API")."""
    try:
        call()
    except KafkaException as error:
        cause = kafka_error(error)
        # Producing into a transaction that failed meanwhile is an erroneous state; `abort` says whether it is worse than that.
        if cause.txn_requires_abort() or (name == "produce" and cause.code() == KafkaError._STATE):
            raise TransactionAborted(f"{name}: {cause}") from error
        if cause.retriable() and not cause.fatal():
            raise DependencyUnavailable("kafka", f"{name}: {cause}") from error
        raise Fenced(f"{name}: {cause}") from error


def _produce(producer: Producer, outputs: Iterable[OutputRecord]) -> None:
    for output in outputs:
        try:
            enqueue(producer, output)
        except DependencyUnavailable as error:  # half of them are queued: only all again, after an abort, is whole
            raise TransactionAborted(f"produce: {error.reason}") from error
    producer.poll(0)
