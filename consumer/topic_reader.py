"""Reading what stands in a topic now, from its beginning, outside any group: for `dead-letters` and `rebuild`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer.client_log import CLIENT_LOG
from consumer.errors import DependencyUnavailable
from consumer.kafka import client_settings, kafka_error, partition_counts
from consumer.settings import KafkaSettings

CALL_TIMEOUT_S = 10.0
SILENCE_S_MAX = 60.0  # without a record and without the end of the partition
READ_RECORDS = 500


class TopicReader:
    """Committed records of one topic, up to where it ends when the reader is opened. Use as a context manager.

    Every call may raise DependencyUnavailable: Kafka or the topic is not there, or it falls silent. It never ends early without
    saying so.

    Attributes:
        bounds: first and one past the last offset of each partition.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        partitions = partition_counts(settings, timeout_s=CALL_TIMEOUT_S).get(topic)
        if not partitions:
            raise DependencyUnavailable("kafka", f"expected the topic {topic}, it is not there")
        self._topic = topic
        self._consumer = Consumer(
            {
                **client_settings(settings),
                "group.id": f"{settings.group_id}-reader",  # never joined, nothing committed
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "logger": CLIENT_LOG,
            }
        )
        try:
            with _translated():
                self.bounds = [self._bounds_of(partition) for partition in range(partitions)]
        except DependencyUnavailable:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._consumer.close()

    def read(self, partition: int) -> Iterator[tuple[int, Message]]:
        """Offset and record, in order; may be done again. A transaction that is still open ends the partition before it."""
        start, end = self.bounds[partition]
        if start >= end:
            return
        with _translated():
            self._consumer.assign([TopicPartition(self._topic, partition, start)])
        heard_s = time.monotonic()
        while True:
            with _translated():
                messages = self._consumer.consume(READ_RECORDS, 0.5)
            for message in messages:
                heard_s = time.monotonic()
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:  # behind transaction markers, which are no records
                        return
                    raise DependencyUnavailable("kafka", f"{self._topic}/{partition}: {error.str()}")
                offset = message.offset()
                assert offset is not None
                if offset >= end:
                    return
                yield offset, message
                if offset + 1 >= end:
                    return
            if time.monotonic() > heard_s + SILENCE_S_MAX:
                raise DependencyUnavailable("kafka", f"{self._topic}/{partition}: no answer for {SILENCE_S_MAX:g} s")

    def _bounds_of(self, partition: int) -> tuple[int, int]:
        start, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=CALL_TIMEOUT_S)
        return start, end


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise DependencyUnavailable("kafka", kafka_error(error).str()) from error
