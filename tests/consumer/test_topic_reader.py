"""Reading a topic to its end: it ends where the topic does, and says so where it cannot go on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError

from consumer import topic_reader
from consumer.errors import DependencyUnavailable
from consumer.settings import KafkaSettings
from consumer.topic_reader import TopicReader


@dataclass(frozen=True)
class FakeMessage:
    """A record, or what the client reports in the place of one."""

    at: int | None = None
    failure: KafkaError | None = None

    def offset(self) -> int | None:
        return self.at

    def error(self) -> KafkaError | None:
        return self.failure


class FakeClient:
    """A partition of five offsets; `batches` is what consuming brings, one after another."""

    def __init__(self, batches: list[list[FakeMessage]]) -> None:
        self.batches = batches
        self.is_closed = False

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 5

    def assign(self, _: Any) -> None:
        pass

    def consume(self, *_: Any) -> list[FakeMessage]:
        return self.batches.pop(0) if self.batches else []

    def close(self) -> None:
        self.is_closed = True


Opens = Callable[[list[list[FakeMessage]]], tuple[TopicReader, FakeClient]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opens:
    """A reader on a client that brings these batches."""

    def open_reader(batches: list[list[FakeMessage]]) -> tuple[TopicReader, FakeClient]:
        client = FakeClient(batches)
        monkeypatch.setattr(topic_reader, "partition_counts", lambda *_, **__: {"a-topic": 1})
        monkeypatch.setattr(topic_reader, "Consumer", lambda _: client)
        return TopicReader(KafkaSettings(), "a-topic"), client

    return open_reader


END = FakeMessage(failure=KafkaError(KafkaError._PARTITION_EOF))
AWAY = FakeMessage(failure=KafkaError(KafkaError._ALL_BROKERS_DOWN))


def offsets(reader: TopicReader) -> list[int]:
    """What is read of the only partition."""
    return [offset for offset, _ in reader.read(0)]


def test_it_ends_at_the_last_offset(opened: Opens) -> None:
    """Records that come after the reader was opened are not read."""
    reader, client = opened([[FakeMessage(at) for at in range(8)]])
    with reader:
        assert offsets(reader) == [0, 1, 2, 3, 4]
    assert client.is_closed


def test_it_ends_behind_transaction_markers(opened: Opens) -> None:
    """The last offsets of a partition may be markers, which are no records: its end is an end, too."""
    reader, _ = opened([[FakeMessage(0), FakeMessage(1)], [], [END]])
    with reader:
        assert offsets(reader) == [0, 1]


def test_an_error_in_the_middle_is_not_taken_for_the_end(opened: Opens) -> None:
    """A broker that goes away while a topic is read is an error; what is behind it is not left out in silence."""
    reader, _ = opened([[FakeMessage(0)], [AWAY]])
    with reader, pytest.raises(DependencyUnavailable, match="a-topic/0"):
        offsets(reader)


def test_silence_is_not_taken_for_the_end(opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that says nothing any more is an error after a while."""
    monkeypatch.setattr(topic_reader, "SILENCE_S_MAX", -1.0)
    reader, _ = opened([[FakeMessage(0)]])
    with reader, pytest.raises(DependencyUnavailable, match="no answer"):
        offsets(reader)


def test_a_topic_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the topic that was expected."""
    monkeypatch.setattr(topic_reader, "partition_counts", lambda *_, **__: {})
    with pytest.raises(DependencyUnavailable, match="no-such-topic"):
        TopicReader(KafkaSettings(), "no-such-topic")
