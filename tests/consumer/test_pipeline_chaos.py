"""Whatever happens, each offset is answered exactly once: random rebalances, aborts and outages, by seed."""

import random
from collections.abc import Callable

import pytest

from consumer import codec
from consumer.batches import Partition
from consumer.errors import TransactionAborted
from consumer.records import InputRecord, OutputRecord
from tests.consumer.journey import Journey, event_of
from tests.examples import a_change_event, a_deletion, a_numbered_book, an_input_record
from tests.fakes import ENRICHED_TOPIC, away, source_of

MakeJourney = Callable[..., Journey]
STEPS = 120
PARTITIONS = 3
KEYS = 4  # a partition: few, so that versions meet


class Chaos:
    """At each poll something may happen. After `STEPS` polls all partitions come back and all things work."""

    def __init__(self, one: Journey, seed: int) -> None:
        self._one = one
        self._random = random.Random(seed)
        self._steps = 0
        self._answered_elsewhere: set[tuple[int, int]] = set()
        self._events: tuple[Callable[[], None], ...] = (
            self._publish,
            self._publish,
            self._publish,
            self._revoke,
            self._assign,
            self._lose,
            self._another_member_answers,
            lambda: one.delivery.send_failures.next(TransactionAborted("chaos")),
            lambda: one.delivery.commit_failures.next(TransactionAborted("chaos")),
            lambda: one.delivery.commit_failures.next(*away("kafka", 2)),
            lambda: one.delivery.abort_failures.next(*away("kafka")),
            lambda: one.store.write_failures.next(*away("redis")),
            lambda: one.store.read_failures.next(*away("redis")),
            lambda: one.schemas.failures.next(*away("schema_registry")),
            lambda: one.source.in_keep_alive.append(self._rebalance),
            lambda: one.source.after_fetch.append(self._revoke),
            lambda: one.source.poll_failures.next(*away("kafka")),
        )
        one.source.before_poll.append(self._step)

    def is_over(self) -> bool:
        return self._steps > STEPS and self._one.kafka.is_done()

    def assert_store_equals_topic(self) -> None:
        """What the store holds of a listing is what its last answer said, where that answer is ours."""
        last = {output.key: output for output in self._one.kafka.enriched()}
        for key, output in last.items():
            if source_of(output) in self._answered_elsewhere:
                continue
            state = self._one.store.states[(key or b"").decode()]
            if output.value is None:
                assert type(state).__name__ == "Tombstone", (key, state)
            else:
                assert state.version == event_of(output)["version"], (key, state)

    def _step(self) -> None:
        self._steps += 1
        one = self._one
        if self._steps <= STEPS:
            self._random.choice(self._events)()
            one.source.before_poll.append(self._step)
        else:
            one.source.in_keep_alive.clear()
            one.source.after_fetch.clear()
            one.source.assign(*(set(one.kafka.logs) - one.source.owned))

    def _publish(self) -> None:
        for _ in range(self._random.randrange(8)):
            partition = self._random.randrange(PARTITIONS)
            self._one.kafka.publish(self._record(partition), partition=partition)

    def _record(self, partition: int) -> InputRecord:
        listing_id = f"{partition}-{self._random.randrange(KEYS)}"
        kind, version = self._random.randrange(10), self._random.randrange(6)
        if kind == 0:
            return an_input_record(b"{}", key=listing_id.encode())
        if kind < 3:
            return a_deletion(listing_id, version=version)
        return a_change_event(a_numbered_book(self._random.randrange(3), version=version, listing_id=listing_id))

    def _some(self, partitions: set[Partition]) -> list[Partition]:
        return self._random.sample(sorted(partitions), self._random.randint(0, len(partitions)))

    def _rebalance(self) -> None:
        self._random.choice((self._revoke, self._assign, self._lose))()

    def _revoke(self) -> None:
        self._one.source.revoke(*self._some(self._one.source.owned))

    def _lose(self) -> None:
        self._one.source.lose(*self._some(self._one.source.owned))

    def _assign(self) -> None:
        self._one.source.assign(*self._some(set(self._one.kafka.logs) - self._one.source.owned))

    def _another_member_answers(self) -> None:
        kafka = self._one.kafka
        for partition in self._some(set(kafka.logs) - self._one.source.owned):
            start = kafka.offsets[partition]
            records = kafka.logs[partition][start : start + self._random.randrange(4)]
            outputs = []
            for record in records:
                source = f"{record.topic}/{record.partition}/{record.offset}".encode()
                outputs.append(OutputRecord(ENRICHED_TOPIC, record.key, None, ((codec.SOURCE_HEADER, source),)))
                self._answered_elsewhere.add((record.partition, record.offset))
            kafka.commit(outputs, {partition: start + len(records)})


@pytest.mark.parametrize("seed", range(40))
def test_each_offset_is_answered_exactly_once(journey: MakeJourney, seed: int) -> None:
    """Under random rebalances, aborts and outages each offset has one committed answer, in order, and the store agrees."""
    one = journey(
        partitions=PARTITIONS,
        batch={"max_records": 1 + seed % 5, "max_in_flight": 1 + seed % 4, "max_linger_ms": 0},
        delivery={"transaction_ms": 1 + seed % 7, "max_reject_share": 1},
    )
    chaos = Chaos(one, seed)
    one.run(chaos.is_over, deadline_s=20)
    assert one.kafka.answered() == one.kafka.all_positions()
    for partition in range(PARTITIONS):
        offsets = [offset for found, offset in map(source_of, one.kafka.enriched()) if found == partition]
        assert offsets == sorted(offsets), partition
    chaos.assert_store_equals_topic()
