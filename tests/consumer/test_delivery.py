"""What the writing side makes of the client's answers: worth asking again, to be aborted, or the end.

The client is scripted here, because a broker cannot be told to lose one answer; `tests/faults` meets the same on a real one.
"""

from collections.abc import Callable
from threading import Event
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer import delivery
from consumer.delivery import AtLeastOnce, ExactlyOnce
from consumer.errors import DependencyUnavailable, Fenced, TransactionAborted
from consumer.kafka import KafkaSource
from consumer.records import OutputRecord
from consumer.settings import DeliverySettings, KafkaSettings

RECORD = OutputRecord("out", b"key", b"value", ())
POSITIONS = {("in", 0): 7}


class ScriptedProducer:
    """Notes its calls in the list that all of them share, and raises or waits where the script says so."""

    calls: list[str]
    script: dict[str, list[Callable[[], None]]]

    settings: dict[str, Any]

    def __init__(self, settings: dict[str, Any]) -> None:
        type(self).settings = settings
        self.failed = settings.get("on_delivery", lambda *_: None)
        self._call("new")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if steps := self.script.get(name):
            steps.pop(0)()

    def init_transactions(self, _: float) -> None:
        self._call("init")

    def begin_transaction(self) -> None:
        self._call("begin")

    def produce(self, *_: Any, **__: Any) -> None:
        self._call("produce")

    def poll(self, _: float) -> int:
        return 0

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self._call("offsets")

    def commit_transaction(self, _: float) -> None:
        self._call("commit")

    def abort_transaction(self, _: float) -> None:
        self._call("abort")

    def purge(self, *, in_flight: bool = True) -> None:
        self._call("purge all" if in_flight else "purge the queue")

    def flush(self, _: float) -> int:
        self._call("flush")
        return 0


class Member:
    """The group, as the producer needs it."""

    def __init__(self) -> None:
        self.committed: list[object] = []

    def commit(self, positions: object) -> None:
        self.committed.append(positions)

    def group_metadata(self) -> object:
        return object()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    noted: list[str] = []
    monkeypatch.setattr(ScriptedProducer, "calls", noted, raising=False)
    monkeypatch.setattr(ScriptedProducer, "script", {}, raising=False)
    monkeypatch.setattr(delivery, "Producer", ScriptedProducer)
    monkeypatch.setattr(delivery, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(delivery, "OVERTIME_S", 0.05)
    return noted


def open_delivery() -> ExactlyOnce:
    return ExactlyOnce(KafkaSettings(), source=cast("KafkaSource", Member()))


def fails(code: int, *, retriable: bool = False, fatal: bool = False, abort: bool = False) -> Callable[[], None]:
    """A step that raises as the client does."""

    def step() -> None:
        raise KafkaException(KafkaError(code, "says the test", fatal, retriable, abort))

    return step


def test_outputs_offsets_and_commit_are_one_transaction(calls: list[str]) -> None:
    """In this order, begun once."""
    one = open_delivery()
    one.send([RECORD, RECORD])
    one.send([RECORD])
    one.commit(POSITIONS)
    assert calls == ["new", "init", "begin", "produce", "produce", "produce", "offsets", "commit"]


def test_offsets_are_committed_beside_their_answers_only(calls: list[str]) -> None:
    """Once their transaction was dropped there is none to commit them in, and none is begun for them alone."""
    one = open_delivery()
    one.send([RECORD])
    one.abort()
    with pytest.raises(TransactionAborted, match="expected an open transaction"):
        one.commit(POSITIONS)
    assert "offsets" not in calls


def test_producing_into_a_transaction_that_failed_rewinds(calls: list[str]) -> None:
    """The client calls it an erroneous state; it is to be aborted, and no reason to end."""
    ScriptedProducer.script["produce"] = [fails(KafkaError._STATE)]
    with pytest.raises(TransactionAborted, match="produce"):
        open_delivery().send([RECORD])


def test_an_abort_takes_nothing_back_that_is_in_flight(calls: list[str]) -> None:
    """A purge would leave a gap in the producer's sequence, which breaks the next transaction."""
    one = open_delivery()
    one.send([RECORD])
    assert one.abort() is False
    assert calls[-1] == "abort"
    assert not any(call.startswith("purge") for call in calls)


def test_a_commit_in_doubt_is_asked_about_before_it_is_aborted(calls: list[str]) -> None:
    """Its answer was lost: it happened, and aborting would have its records read and answered again."""
    ScriptedProducer.script["commit"] = [fails(KafkaError._TIMED_OUT, retriable=True)]
    one = open_delivery()
    one.send([RECORD])
    with pytest.raises(DependencyUnavailable):
        one.commit(POSITIONS)
    assert one.abort() is True
    assert calls[-3:] == ["offsets", "commit", "commit"]


def test_a_commit_is_asked_for_again_without_sending_the_offsets_twice(calls: list[str]) -> None:
    """Offsets are part of the transaction already."""
    ScriptedProducer.script["commit"] = [fails(KafkaError._TIMED_OUT, retriable=True)]
    one = open_delivery()
    one.send([RECORD])
    with pytest.raises(DependencyUnavailable):
        one.commit(POSITIONS)
    one.commit(POSITIONS)
    assert calls.count("offsets") == 1


def test_a_commit_in_doubt_that_did_not_happen_is_aborted(calls: list[str]) -> None:
    """The broker says that it must be: then it is."""
    ScriptedProducer.script["commit"] = [
        fails(KafkaError._TIMED_OUT, retriable=True),
        fails(KafkaError.INVALID_TXN_STATE, abort=True),
    ]
    one = open_delivery()
    one.send([RECORD])
    with pytest.raises(DependencyUnavailable):
        one.commit(POSITIONS)
    assert one.abort() is False
    assert calls[-2:] == ["commit", "abort"]


def test_a_call_that_never_comes_back_costs_its_producer(calls: list[str]) -> None:
    """librdkafka issues 5456 and 5511: its transaction is left to its time-out, and another producer goes on."""
    never = Event()
    ScriptedProducer.script["offsets"] = [lambda: cast("None", never.wait(30))]
    one = open_delivery()
    one.send([RECORD])
    with pytest.raises(TransactionAborted, match="no answer"):
        one.commit(POSITIONS)
    assert one.abort() is False
    assert calls[-2:] == ["new", "init"]
    assert "abort" not in calls
    one.send([RECORD])
    one.commit(POSITIONS)
    assert calls[-4:] == ["begin", "produce", "offsets", "commit"]
    never.set()


def write(delivery: ExactlyOnce) -> None:
    delivery.send([RECORD])
    delivery.commit(POSITIONS)


@pytest.mark.parametrize("code", [KafkaError._FENCED, KafkaError.INVALID_TXN_STATE])
@pytest.mark.parametrize("name", ["begin", "produce", "offsets"])
def test_a_transaction_that_timed_out_costs_its_producer(calls: list[str], name: str, code: int) -> None:
    """Its id is its alone, so a fence means that the broker aborted it, while it was away: another producer goes on."""
    ScriptedProducer.script[name] = [fails(code, fatal=True)]
    one = open_delivery()
    with pytest.raises(TransactionAborted, match="says the test"):
        write(one)
    assert one.abort() is False
    assert calls[-2:] == ["new", "init"]
    assert "abort" not in calls
    write(one)
    assert calls[-4:] == ["begin", "produce", "offsets", "commit"]


def test_a_transaction_that_timed_out_before_its_abort_costs_its_producer(calls: list[str]) -> None:
    """The abort says so: it has happened, and another producer goes on."""
    ScriptedProducer.script["abort"] = [fails(KafkaError._FENCED, fatal=True)]
    one = open_delivery()
    one.send([RECORD])
    assert one.abort() is False
    assert calls[-3:] == ["abort", "new", "init"]


def test_a_commit_in_doubt_that_is_fenced_is_a_question_to_the_group(calls: list[str]) -> None:
    """Whether it happened this producer cannot say any more: another takes its place."""
    ScriptedProducer.script["commit"] = [
        fails(KafkaError._TIMED_OUT, retriable=True),
        fails(KafkaError._FENCED, fatal=True),
    ]
    one = open_delivery()
    with pytest.raises(DependencyUnavailable):
        write(one)
    assert one.abort() is True
    assert calls[-3:] == ["commit", "new", "init"]
    write(one)
    assert calls[-1] == "commit"


def test_a_commit_in_doubt_for_too_long_is_a_question_to_the_group(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may not find its coordinator again, and say "retry" for ever; the group has another one, and keeps its answer
    back while the transaction is open."""
    away = fails(KafkaError._TIMED_OUT, retriable=True)
    ScriptedProducer.script["commit"] = [away, away, away]
    one = open_delivery()
    with pytest.raises(DependencyUnavailable):
        write(one)
    with pytest.raises(DependencyUnavailable):
        one.abort()
    monkeypatch.setattr(delivery, "SILENCE_S_MAX", 0.0)
    ScriptedProducer.script["init"] = [away]
    with pytest.raises(DependencyUnavailable):
        one.abort()
    assert one.abort() is True
    assert calls[-5:] == ["commit", "new", "init", "new", "init"]
    assert "abort" not in calls


@pytest.mark.parametrize("name", ["offsets", "abort"])
def test_a_producer_that_is_silent_for_too_long_is_replaced(calls: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Before its commit nothing is in doubt: the broker drops what it had open when the next one begins, which has its id."""
    away = fails(KafkaError._TIMED_OUT, retriable=True)
    ScriptedProducer.script[name] = [away, away]
    one = open_delivery()
    transactional_id = ScriptedProducer.settings["transactional.id"]
    one.send([RECORD])
    ask = one.abort if name == "abort" else lambda: one.commit(POSITIONS)
    with pytest.raises(DependencyUnavailable):
        ask()
    monkeypatch.setattr(delivery, "SILENCE_S_MAX", 0.0)
    if name == "offsets":
        with pytest.raises(TransactionAborted, match="no answer"):
            ask()
    assert one.abort() is False
    assert calls[-3:] == [name, "new", "init"]
    assert ScriptedProducer.settings["transactional.id"] == transactional_id


def test_silence_is_counted_from_the_last_answer(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that answered in between is not given up."""
    away = fails(KafkaError._TIMED_OUT, retriable=True)
    ScriptedProducer.script["commit"] = [away]
    one = open_delivery()
    with pytest.raises(DependencyUnavailable):
        write(one)
    one.commit(POSITIONS)
    monkeypatch.setattr(delivery, "SILENCE_S_MAX", 0.05)
    Event().wait(0.06)
    ScriptedProducer.script["commit"] = [away]
    with pytest.raises(DependencyUnavailable):
        write(one)


@pytest.mark.parametrize("name", ["produce", "offsets", "commit"])
def test_another_fatal_error_ends_the_process(calls: list[str], name: str) -> None:
    """A right that is missing, say: another producer would not have it either."""
    ScriptedProducer.script[name] = [fails(KafkaError.CLUSTER_AUTHORIZATION_FAILED, fatal=True)]
    with pytest.raises(Fenced):
        write(open_delivery())


def at_least_once(calls: list[str]) -> tuple[AtLeastOnce, ScriptedProducer, Member]:
    """The other guarantee, its client and its member."""
    member = Member()
    one = AtLeastOnce(KafkaSettings(), source=cast("KafkaSource", member))
    return one, cast("ScriptedProducer", one._producer), member


def test_at_least_once_commits_offsets_behind_the_records(calls: list[str]) -> None:
    """Only what is acknowledged is committed."""
    one, _, member = at_least_once(calls)
    one.send([RECORD])
    one.commit(POSITIONS)
    assert calls == ["new", "produce", "flush"]
    assert member.committed == [POSITIONS]


def test_at_least_once_commits_nothing_when_a_record_failed_and_forgets_it_when_it_rewinds(calls: list[str]) -> None:
    """The record is read again; taking back what is in flight would leave a gap that may break the producer for good."""
    one, client, member = at_least_once(calls)
    one.send([RECORD])
    client.failed("broker away", None)
    with pytest.raises(TransactionAborted, match="broker away"):
        one.commit(POSITIONS)
    assert member.committed == []
    assert one.abort() is False
    assert "purge the queue" in calls
    assert "purge all" not in calls
    one.commit(POSITIONS)
    assert member.committed == [POSITIONS]


def test_at_least_once_ends_the_process_when_its_producer_is_broken(calls: list[str]) -> None:
    """An idempotent producer that is broken for good takes no record any more: it does not rewind for ever."""
    ScriptedProducer.script["produce"] = [fails(KafkaError._FATAL)]
    one, _, _ = at_least_once(calls)
    with pytest.raises(Fenced):
        one.send([RECORD])


@pytest.mark.parametrize(("bytes_max", "size"), [(None, None), (20_000_000, None), (5_000, 5_000)])
def test_a_batch_of_small_records_fits_into_the_topic_that_takes_least(
    calls: list[str], bytes_max: int | None, size: int | None
) -> None:
    """The broker holds `max.message.bytes` against whole batches: many small dead letters would be refused together."""
    delivery.open_delivery(KafkaSettings(), DeliverySettings(), source=cast("KafkaSource", Member()), batch_bytes_max=bytes_max)
    assert ScriptedProducer.settings.get("batch.size") == size
