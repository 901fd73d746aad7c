"""A full queue is waited for, by everything that sends."""

from typing import Any, cast

import pytest
from confluent_kafka import Producer

from consumer import plain_producer
from consumer.errors import DependencyUnavailable
from consumer.kafka import partition_counts
from consumer.plain_producer import PlainProducer, enqueue
from consumer.records import OutputRecord
from consumer.settings import KafkaSettings


class FullQueue:
    """A client whose queue takes a record only after `polls` polls."""

    def __init__(self, polls: int) -> None:
        self.polls_left = polls
        self.taken: list[tuple[str, dict[str, Any]]] = []

    def produce(self, topic: str, **arguments: Any) -> None:
        if self.polls_left > 0:
            raise BufferError("Local: Queue full")
        self.taken.append((topic, arguments))

    def poll(self, _: float) -> None:
        self.polls_left -= 1


A_RECORD = OutputRecord("a-topic", b"key", b"value", (("traceparent", b"00-1"),), 3)


def test_a_full_queue_is_waited_for() -> None:
    """The record goes in once, whole, when there is room."""
    client = FullQueue(polls=3)
    enqueue(cast(Producer, client), A_RECORD)
    expected = {"key": b"key", "value": b"value", "headers": [("traceparent", b"00-1")], "partition": 3}
    assert client.taken == [("a-topic", expected)]


def test_a_queue_that_stays_full_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its deadline it says that the broker takes nothing, and the record is not in the queue."""
    monkeypatch.setattr(plain_producer, "QUEUE_S_MAX", 0.0)
    client = FullQueue(polls=1_000_000)
    with pytest.raises(DependencyUnavailable, match="stayed full"):
        enqueue(cast(Producer, client), A_RECORD)
    assert client.taken == []


def test_properties_of_the_other_kind_of_client_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """`kafka.properties` go to every client: a consumer's among them are not warned about by each producer."""
    properties: dict[str, str | int | float | bool] = {"session.timeout.ms": 10_000, "linger.ms": 7, "log_level": 7}
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", properties=properties)
    with pytest.raises(DependencyUnavailable):
        partition_counts(settings, timeout_s=0.2)
    PlainProducer(settings)._producer.poll(0.2)
    assert [line for line in caplog.messages if "CONFWARN" in line] == []
