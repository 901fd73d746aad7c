"""What a poll hands over when partitions go or errors come in the middle of it; the client is faked."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from consumer import kafka
from consumer.errors import DependencyUnavailable, Fenced
from consumer.kafka import KafkaSource
from consumer.settings import KafkaSettings

TOPIC = "catalogue.listings"


class FakeMessage:
    """A record, or an error in its place."""

    def __init__(self, offset: int, *, partition: int = 0, error: KafkaError | None = None) -> None:
        self._place = (TOPIC, partition, offset)
        self._error = error

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._place[2]

    def error(self) -> KafkaError | None:
        return self._error

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return b"value"

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


Step = FakeMessage | Exception | Callable[[], None]


class FakeConsumer:
    """Plays a script: messages, exceptions, and rebalances that happen inside a call."""

    def __init__(self, _: dict[str, Any]) -> None:
        self.script: deque[Step] = deque()
        self.seeks: list[tuple[int, int]] = []
        self.group: dict[int, int] = {}
        self.fetched_to: dict[int, int] = {}  # the ends that fetches told
        self.ends: dict[int, int] = {}  # as the broker knows them
        self.untold: set[int] = set()  # partitions of which the group does not tell now

    def subscribe(self, _: list[str], **callbacks: Callable[..., None]) -> None:
        self.callbacks = callbacks

    def rebalance(self, kind: str, *partitions: int) -> None:
        self.callbacks[kind](self, [TopicPartition(TOPIC, number) for number in partitions])

    def poll(self, _: float) -> FakeMessage | None:
        found = self.consume(1, 0)
        return found[0] if found else None

    def consume(self, count: int, _: float) -> list[FakeMessage]:
        found: list[FakeMessage] = []
        while self.script and len(found) < count:
            step = self.script.popleft()
            if isinstance(step, Exception):
                raise step
            if isinstance(step, FakeMessage):
                found.append(step)
            else:
                step()
        return found

    def committed(self, partitions: list[TopicPartition], _: float) -> list[Any]:
        unstable = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)
        return [
            SimpleNamespace(
                topic=one.topic,
                partition=one.partition,
                offset=self.group.get(one.partition, OFFSET_INVALID),
                error=unstable if one.partition in self.untold else None,
            )
            for one in partitions
        ]

    def pause(self, _: list[TopicPartition]) -> None: ...
    def resume(self, _: list[TopicPartition]) -> None: ...

    def get_watermark_offsets(self, of: TopicPartition, timeout: float = 0, cached: bool = False) -> tuple[int, int]:
        end = (self.fetched_to if cached else self.ends).get(of.partition)
        if end is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return 0, end

    def seek(self, to: TopicPartition) -> None:
        self.seeks.append((to.partition, to.offset))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> KafkaSource:
    monkeypatch.setattr(kafka, "Consumer", FakeConsumer)
    made = KafkaSource(
        KafkaSettings(), before_revoked=lambda: None, after_lost=lambda: None, on_rebalance=lambda kind, partitions: None
    )
    client_of(made).rebalance("on_assign", 0, 1)
    return made


def client_of(source: KafkaSource) -> FakeConsumer:
    client: Any = source._consumer
    assert isinstance(client, FakeConsumer)
    return client


def offsets(source: KafkaSource) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in source.poll(records_max=10, idle_s=0, linger_s=0)]


@pytest.mark.parametrize("kind", ["on_revoke", "on_lost"])
def test_a_poll_brings_nothing_of_a_partition_that_goes_meanwhile(source: KafkaSource, kind: str) -> None:
    """Messages of a partition that was taken before they were handed over are its next owner's."""
    client = client_of(source)
    client.script.extend([FakeMessage(5), lambda: client.rebalance(kind, 0), FakeMessage(7, partition=1)])
    assert offsets(source) == [(1, 7)]
    assert source.generation((TOPIC, 0)) is None


def test_a_rewind_after_a_recall_goes_where_the_group_stands(source: KafkaSource) -> None:
    """Where the group has no offset yet it goes back to the first record that was read."""
    client = client_of(source)
    client.script.extend([FakeMessage(5), FakeMessage(7, partition=1)])
    offsets(source)
    client.group = {0: 6, 1: OFFSET_INVALID}
    source.recall()
    source.rewind()
    assert client.seeks == [(0, 6), (1, 7)]


def test_a_rewind_knows_nothing_of_an_earlier_assignment(source: KafkaSource) -> None:
    """A partition that went in mid-poll and came back is rewound to where it was resumed, not to where it was before."""
    client = client_of(source)
    client.script.extend([FakeMessage(5), lambda: client.rebalance("on_revoke", 0), lambda: client.rebalance("on_assign", 0)])
    assert offsets(source) == []
    client.script.append(FakeMessage(9))
    assert offsets(source) == [(0, 9)]
    source.rewind()
    assert client.seeks == [(0, 9)]


@pytest.mark.parametrize(
    "trouble",
    [
        KafkaException(KafkaError(KafkaError._TIMED_OUT)),
        FakeMessage(-1, error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)),
    ],
)
def test_an_error_loses_no_message(source: KafkaSource, trouble: Step) -> None:
    """What a poll brought before it failed is handed over by the next one."""
    client_of(source).script.extend([FakeMessage(5), trouble, FakeMessage(6)])
    with pytest.raises(DependencyUnavailable):
        offsets(source)
    assert offsets(source) == [(0, 5), (0, 6)]


def test_a_passing_error_is_no_record(source: KafkaSource) -> None:
    """An error that the client mends by itself is passed over."""
    trouble = FakeMessage(-1, error=KafkaError(KafkaError._ALL_BROKERS_DOWN))
    client_of(source).script.extend([FakeMessage(5), trouble, FakeMessage(6)])
    assert offsets(source) == [(0, 5), (0, 6)]


def test_a_fatal_error_ends_the_service(source: KafkaSource) -> None:
    """After a fatal error only a restart helps."""
    client_of(source).script.append(FakeMessage(-1, error=KafkaError(KafkaError._FATAL, "gone", fatal=True)))
    with pytest.raises(Fenced):
        offsets(source)


def test_what_came_while_paused_is_handed_over_first(source: KafkaSource) -> None:
    """A message that came while the partitions were paused is not lost, and not handed over twice."""
    client_of(source).script.append(FakeMessage(5))
    source.keep_alive()
    client_of(source).script.append(FakeMessage(6))
    assert offsets(source) == [(0, 5), (0, 6)]
    assert offsets(source) == []


def test_a_partition_that_began_elsewhere_is_sent_to_where_the_group_is(source: KafkaSource) -> None:
    """The client may begin at the first record although offsets were committed; others are handed over meanwhile."""
    client = client_of(source)
    client.group = {0: 8, 1: 7}
    client.script.extend([FakeMessage(0), FakeMessage(7, partition=1), FakeMessage(1)])
    assert offsets(source) == [(1, 7)]
    assert client.seeks == [(0, 8)]
    client.script.extend([FakeMessage(9), FakeMessage(10)])  # 8 is a transaction's marker
    assert offsets(source) == [(0, 9), (0, 10)]
    assert client.seeks == [(0, 8)], "asked once"
    source.rewind()
    assert client.seeks[1:] == [(0, 8), (1, 7)]


@pytest.mark.parametrize("how", ["that partition", "all"])
def test_a_partition_waits_while_the_group_does_not_tell_where_it_is(
    source: KafkaSource, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A killed member's transaction is still open: its records come again until the group tells."""
    client = client_of(source)
    client.group = {0: 8, 1: 7}
    client.script.append(FakeMessage(7, partition=1))
    assert offsets(source) == [(1, 7)]
    if how == "all":
        monkeypatch.setattr(client, "committed", raises(KafkaException(KafkaError(KafkaError._TIMED_OUT))))
    client.untold = {0}
    client.script.extend([FakeMessage(0), FakeMessage(8, partition=1)])
    assert offsets(source) == [(1, 8)]
    assert client.seeks == [(0, 0)]
    monkeypatch.undo()
    client.untold = set()
    client.script.append(FakeMessage(0))
    assert offsets(source) == []
    client.script.append(FakeMessage(8))
    assert offsets(source) == [(0, 8)]
    assert client.seeks == [(0, 0), (0, 8)]


def test_a_begin_that_could_not_be_checked_loses_nothing(source: KafkaSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seek fails: what was read is kept, and checked again."""
    client = client_of(source)
    client.group = {0: 8}
    client.script.extend([FakeMessage(0), FakeMessage(7, partition=1)])
    with monkeypatch.context() as patched:
        patched.setattr(client, "seek", raises(KafkaException(KafkaError(KafkaError._STATE))))
        with pytest.raises(DependencyUnavailable):
            offsets(source)
    assert offsets(source) == [(1, 7)]
    assert client.seeks == [(0, 8)]


def test_a_rewind_keeps_what_a_new_partition_brought(source: KafkaSource) -> None:
    """Its first record came while work was stuck: nothing leads back to it, so it must not be dropped."""
    client = client_of(source)
    client.script.append(FakeMessage(7, partition=1))
    offsets(source)
    client.script.append(FakeMessage(5))
    source.keep_alive()
    client.script.append(FakeMessage(8, partition=1))
    source.keep_alive()
    source.rewind()
    assert client.seeks == [(1, 7)]
    client.script.append(FakeMessage(6))
    assert offsets(source) == [(0, 5), (0, 6)]


def test_the_lag_grows_while_nothing_is_fetched(source: KafkaSource) -> None:
    """Work is stuck and the partitions are paused: the ends are asked for; a broker that is away leaves the last ones known."""
    client = client_of(source)
    client.script.extend([FakeMessage(5), FakeMessage(7, partition=1)])
    offsets(source)
    client.fetched_to, client.ends = {0: 6, 1: 9}, {0: 100, 1: 200}
    assert source.lag() == {0: 1, 1: 2}
    source.keep_alive()
    assert source.lag() == {0: 95, 1: 193}
    client.ends = {}
    assert source.lag() == {0: 1, 1: 2}


def raises(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call
