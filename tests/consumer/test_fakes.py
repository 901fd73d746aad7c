"""The fakes keep the rules of what they stand for."""

import pytest

from consumer.batches import Partition
from consumer.errors import TransactionAborted
from consumer.records import Enriched, OutputRecord, State, Tombstone
from tests.consumer.test_prediction_store import ENCODER, NOW_MS, REFUSED, WRITTEN, novel
from tests.examples import INPUT_TOPIC, a_deletion
from tests.fakes import FakeDelivery, FakeKafka, FakeSource, FakeStore

P0: Partition = (INPUT_TOPIC, 0)
OUTPUT = OutputRecord("out", b"k", None, ())


@pytest.mark.parametrize(("stored", "offered"), WRITTEN)
def test_the_store_takes_what_the_real_one_takes(stored: State, offered: State) -> None:
    """What the real store writes over an entry, the fake writes, too."""
    store = FakeStore()
    store.write([stored], now_ms=NOW_MS)
    assert store.write([offered], now_ms=NOW_MS)[0] is offered
    assert store.states == {"bd-1": offered}


@pytest.mark.parametrize(("stored", "offered"), REFUSED)
def test_the_store_refuses_what_the_real_one_refuses(stored: State, offered: State) -> None:
    """What the real store refuses, the fake refuses, too, and gives what it holds."""
    store = FakeStore()
    store.write([stored], now_ms=NOW_MS)
    assert store.write([offered], now_ms=NOW_MS) == [stored]
    assert store.states == {"bd-1": stored}


def test_the_store_knows_what_is_unchanged() -> None:
    """Same content and same model epoch: unchanged. Anything else, a tombstone among it, is not."""
    store = FakeStore()
    held: list[Enriched | Tombstone] = [novel("a"), novel("b", content="beef"), novel("c", epoch=9), Tombstone("d", 1)]
    store.write(held, now_ms=NOW_MS)
    assert store.unchanged(dict.fromkeys("abcde", "c0ffee"), model_epoch=3, recall=ENCODER.recall) == {"a": novel("a", version=0)}


@pytest.fixture
def kafka() -> FakeKafka:
    made = FakeKafka()
    made.publish(a_deletion("a"), a_deletion("b"))
    return made


def test_nothing_is_visible_before_the_commit(kafka: FakeKafka) -> None:
    """Outputs of an open or aborted transaction are invisible; with the commit they and the offsets appear."""
    delivery = FakeDelivery(kafka, FakeSource(kafka))
    delivery.send([OUTPUT])
    delivery.abort()
    delivery.send([OUTPUT])
    assert (kafka.outputs, kafka.aborted, kafka.offsets[P0]) == ([], [[OUTPUT]], 0)
    delivery.commit({P0: 1})
    assert (kafka.outputs, kafka.offsets[P0]) == ([OUTPUT], 1)


def test_an_aborted_transaction_wants_an_abort(kafka: FakeKafka) -> None:
    """After the broker aborted a transaction, nothing but an abort is taken."""
    delivery = FakeDelivery(kafka, FakeSource(kafka))
    delivery.send([])
    delivery.commit_failures.next(TransactionAborted("test"))
    with pytest.raises(TransactionAborted):
        delivery.commit({P0: 1})
    with pytest.raises(AssertionError):
        delivery.commit({P0: 1})
    delivery.abort()
    delivery.send([])
    delivery.commit({P0: 1})


def test_offsets_outside_their_answers_transaction_are_refused(kafka: FakeKafka) -> None:
    """Neither before there is one nor after it was dropped."""
    delivery = FakeDelivery(kafka, FakeSource(kafka))
    for end in (lambda: None, delivery.close):
        end()
        with pytest.raises(AssertionError, match="no open transaction"):
            delivery.commit({P0: 1})
        delivery.send([])


def test_offsets_of_others_and_offsets_that_go_back_are_refused(kafka: FakeKafka) -> None:
    """A member commits for partitions that it owns, and forwards."""
    source = FakeSource(kafka)
    delivery = FakeDelivery(kafka, source)
    delivery.send([])
    delivery.commit({P0: 2})
    delivery.send([])
    with pytest.raises(AssertionError):
        delivery.commit({P0: 1})
    source.revoke(P0)
    with pytest.raises(AssertionError):
        delivery.commit({P0: 2})


def test_a_rewound_source_reads_again_under_a_new_generation(kafka: FakeKafka) -> None:
    """A rewind goes to the committed offset, and the generation rises."""
    source = FakeSource(kafka)
    generation = source.generation(P0)
    first = source.poll(records_max=9, idle_s=0, linger_s=0)
    source.committed({P0: 1})
    source.rewind()
    assert source.poll(records_max=9, idle_s=0, linger_s=0) == first[1:]
    assert source.generation(P0) not in (None, generation)
