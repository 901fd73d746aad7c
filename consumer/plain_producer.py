"""Sending records outside any transaction, for `publish` and `dead-letters replay`; and the one way to fill a client's queue."""

import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumer.client_log import CLIENT_LOG
from consumer.errors import DependencyUnavailable
from consumer.kafka import client_settings, kafka_error
from consumer.records import OutputRecord
from consumer.settings import KafkaSettings

QUEUE_S_MAX = 10.0
FLUSH_S_MAX = 30.0
MESSAGE_BYTES_MAX = 100_000_000  # how large a record may be is for the broker to say


class PlainProducer:
    """An idempotent producer; `flush` says whether all arrived."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._failed: list[str] = []
        self._told: list[str] = []
        self._producer = Producer(
            {
                "enable.idempotence": True,
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": MESSAGE_BYTES_MAX,
                "partitioner": "murmur2_random",  # as Java's clients place keys, so that both may write one topic
                **client_settings(settings),
                "delivery.report.only.error": True,
                "on_delivery": self._not_delivered,
                "error_cb": self._hear,
                "logger": CLIENT_LOG,
            }
        )

    def send(self, output: OutputRecord) -> None:
        """Hands a record to the client. Raises: DependencyUnavailable: the queue stays full, or the client refuses it."""
        try:
            enqueue(self._producer, output)
        except KafkaException as error:
            raise DependencyUnavailable("kafka", f"{output.topic}: {kafka_error(error).str()}") from error
        self._producer.poll(0)

    def flush(self) -> None:
        """Returns when every record is on the broker. Raises: DependencyUnavailable."""
        left = self._producer.flush(FLUSH_S_MAX)
        if self._failed or left:
            reason = self._failed[0] if self._failed else f"{left} records are not acknowledged after {FLUSH_S_MAX:g} s"
            raise DependencyUnavailable("kafka", "; ".join([reason, *self._told]))

    def _hear(self, error: KafkaError) -> None:
        # A wrong password or certificate fails no record: they wait for a broker that takes them.
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) and not self._told:
            self._told.append(error.str())

    def _not_delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(str(error))


def enqueue(producer: Producer, output: OutputRecord) -> None:
    """Puts a record into the client's queue, waiting for the broker while that is full.

    Raises:
        DependencyUnavailable: it stayed full for `QUEUE_S_MAX`; the record is not in it.
        KafkaException: the client refuses the record.
    """
    arguments: dict[str, Any] = {"key": output.key, "value": output.value, "headers": list(output.headers)}
    if output.partition is not None:
        arguments["partition"] = output.partition
    deadline_s = time.monotonic() + QUEUE_S_MAX
    while True:
        try:
            producer.produce(output.topic, **arguments)
            return
        except BufferError as error:
            if time.monotonic() > deadline_s:
                raise DependencyUnavailable("kafka", f"the client's queue stayed full for {QUEUE_S_MAX:g} s") from error
            producer.poll(0.1)
