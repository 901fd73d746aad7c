"""Which records are suspect: what processes leave behind when they die, and when they do not."""

from collections.abc import Callable, Iterable

import pytest

from consumer.errors import CircuitOpen, DependencyUnavailable, DrainIncomplete
from consumer.records import InputRecord, Rejected, Stage
from consumer.suspects import Suspects
from tests.consumer.journey import Journey
from tests.examples import INPUT_TOPIC, a_change_event, a_numbered_book, an_input_record

P0 = (INPUT_TOPIC, 0)


class MarksInMemory:
    """The hash in Redis."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], str] = {}
        self.writes = 0
        self.away = False

    def read(self, partition: tuple[str, int]) -> str | None:
        if self.away:
            raise DependencyUnavailable("redis", "away, says the test")
        return self.held.get(partition)

    def write(self, partition: tuple[str, int], mark: str | None) -> None:
        self.read(partition)
        self.writes += 1
        if mark is None:
            self.held.pop(partition, None)
        else:
            self.held[partition] = mark


class Court:
    """Finds the records at some offsets guilty."""

    def __init__(self, *guilty: int) -> None:
        self.guilty = guilty
        self.tried: list[int] = []
        self.closed = False

    def verdict(self, record: InputRecord, _: object) -> Rejected | None:
        self.closed = False
        self.tried.append(record.offset)
        return Rejected(record, Stage.COVER, "killed") if record.offset in self.guilty else None

    def close(self) -> None:
        self.closed = True

    def give_up(self) -> None: ...


class Replica:
    """One process of the group after another, each with a watch of its own over the same marks."""

    def __init__(self, marks: MarksInMemory, court: Court, *, reach: int = 4, crashes: int = 2) -> None:
        self.court = court
        self.suspects = Suspects(marks, court, crashes_before_trial=crashes, reach=reach)

    def reads(self, offsets: Iterable[int], *, generation: int = 1) -> list[int]:
        """Offsets that were rejected."""
        records = [an_input_record(b"", offset=offset) for offset in offsets]
        self.suspects.begin(records, {P0: generation})
        return [one.record.offset for one in self.suspects.tried(records, {})]


@pytest.fixture
def marks() -> MarksInMemory:
    return MarksInMemory()


def test_after_two_deaths_at_a_place_what_stands_there_is_tried(marks: MarksInMemory) -> None:
    """The third process tries as many records as one can have had in flight, and no more; the guilty is rejected."""
    for _ in range(2):
        replica = Replica(marks, Court(7))
        assert replica.reads(range(5, 8)) == []
        assert replica.court.tried == []
    third = Replica(marks, Court(7))
    assert third.reads(range(5, 8)) == [7]
    assert third.reads(range(8, 12)) == []
    assert third.court.tried == [5, 6, 7, 8]
    third.reads([12])
    assert third.court.closed


def test_a_death_after_commits_counts(marks: MarksInMemory) -> None:
    """A steady process that dies is the first of two."""
    steady = Replica(marks, Court())
    steady.reads(range(3))
    steady.suspects.committed({P0: 3})
    for _ in range(2):  # it died at 3, and so does the next
        replica = Replica(marks, Court(3))
        replica.reads([3])
    assert replica.court.tried == [3]


def test_the_count_holds_while_the_suspects_are_not_all_committed(marks: MarksInMemory) -> None:
    """Commits that come a little further before the next death do not clear what stands behind them."""
    Replica(marks, Court()).reads(range(4))
    second = Replica(marks, Court())
    second.reads([0, 1])
    second.suspects.committed({P0: 2})
    third = Replica(marks, Court(3))
    assert third.reads([2, 3]) == [3]


def test_past_its_suspects_a_process_is_steady(marks: MarksInMemory) -> None:
    """What survived the suspects is one death's worth to a successor, not three."""
    for _ in range(3):
        replica = Replica(marks, Court())
        replica.reads(range(4))
    replica.suspects.committed({P0: 4})
    after = Replica(marks, Court())
    after.reads([4])
    assert after.court.tried == []


def test_a_clean_end_leaves_no_mark(marks: MarksInMemory) -> None:
    """A stop, and the breaker's, are nobody's death."""
    replica = Replica(marks, Court())
    with replica.suspects.watching():
        replica.reads([0])
        assert marks.held
    assert marks.held == {}
    replica = Replica(marks, Court())
    replica.reads([0])
    with pytest.raises(CircuitOpen), replica.suspects.watching():
        raise CircuitOpen
    assert marks.held == {}


@pytest.mark.parametrize("error", [DrainIncomplete, RecursionError])
def test_an_end_that_a_record_may_have_caused_leaves_its_mark(marks: MarksInMemory, error: type[Exception]) -> None:
    """An exception that nobody foresaw, and a record that never comes to an end, count as deaths."""
    replica = Replica(marks, Court())
    replica.reads([0])
    with pytest.raises(error), replica.suspects.watching():
        raise error
    assert P0 in marks.held


def test_a_partition_that_is_given_up_takes_its_mark_along_but_not_its_successors(marks: MarksInMemory) -> None:
    """Only the own mark is removed, and batches of the old generation write none."""
    first, second = Replica(marks, Court()), Replica(marks, Court())
    first.reads([0])
    first.suspects.leave(lambda _: None)
    assert marks.held == {}
    second.reads([0])
    held = dict(marks.held)
    first.reads([0])
    first.suspects.leave(lambda _: None)
    assert marks.held == held


def test_a_rewind_is_no_death(marks: MarksInMemory) -> None:
    """A process that reads its records again does not accuse them."""
    replica = Replica(marks, Court())
    for generation in range(1, 6):
        replica.reads([0], generation=generation)
    assert replica.court.tried == []


def test_a_steady_process_writes_nothing(marks: MarksInMemory) -> None:
    """One mark at the begin, one after the first commit, none for the batches after it."""
    replica = Replica(marks, Court())
    for offset in range(50):
        replica.reads([offset])
        replica.suspects.committed({P0: offset + 1})
    assert marks.writes == 2


def test_zero_turns_it_off(marks: MarksInMemory) -> None:
    """With crashes_before_trial 0 nothing is written and nobody tried."""
    for _ in range(5):
        replica = Replica(marks, Court(), crashes=0)
        replica.reads([0])
    assert (marks.writes, replica.court.tried) == (0, [])


def test_a_store_that_is_away_holds_the_begin_up_and_nothing_else(marks: MarksInMemory) -> None:
    """Before records are touched the mark must stand; after a commit it is written when the store is back."""
    replica = Replica(marks, Court())
    marks.away = True
    with pytest.raises(DependencyUnavailable):
        replica.reads([0])
    marks.away = False
    replica.reads([0])
    marks.away = True
    replica.suspects.committed({P0: 1})
    marks.away = False
    replica.suspects.committed({P0: 2})
    assert marks.held[P0].startswith("- 0 ")


def test_the_guilty_are_dead_letters_and_the_others_are_answered(journey: Callable[..., Journey], marks: MarksInMemory) -> None:
    """In the pipeline: after two deaths the killer is a dead letter with its stage, and everything is answered exactly once."""
    for _ in range(2):
        Replica(marks, Court()).reads([0])
    court = Court(5)
    one = journey(batch={"max_records": 3}, suspects=Replica(marks, court, reach=9).suspects)
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(20)))
    one.run()
    assert one.kafka.answered() == one.kafka.all_positions()
    assert court.tried == list(range(9))
    assert [(offset, said) for _, offset, said in one.said() if "dead" in said] == [(5, "dead letter: cover")]
    assert marks.held == {}
