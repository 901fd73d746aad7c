"""The pipeline's outside world in memory: Kafka, the store and the registry, each with the real one's rules.

A fake is strict where the real thing is silent: offsets committed for a partition that is not owned, offsets that go back, a
commit that is repeated with other positions and an answer in nobody's transaction are AssertionErrors.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consumer import codec
from consumer.batches import Partition
from consumer.errors import DependencyUnavailable, TransactionAborted
from consumer.predictions import Recall
from consumer.records import CoverUse, Enriched, InputRecord, OutputRecord, State, Tombstone
from consumer.schema_registry import ParsedSchema, UnknownSchema
from tests.examples import INPUT_TOPIC

ENRICHED_TOPIC, DEAD_LETTER_TOPIC = "catalogue.listings.enriched", "catalogue.listings.dead-letters"


class Failures:
    """Errors to raise at the next calls, in turn; then `always` where it is set, else calls go through."""

    def __init__(self) -> None:
        self._next: deque[Exception] = deque()
        self.always: Exception | None = None

    def next(self, *errors: Exception) -> None:
        self._next.extend(errors)

    def clear(self) -> None:
        self._next.clear()
        self.always = None

    def raise_next(self) -> None:
        if self._next:
            raise self._next.popleft()
        if self.always is not None:
            raise self.always


def away(dependency: str, times: int = 1) -> list[Exception]:
    """A dependency that does not answer for some calls."""
    return [DependencyUnavailable(dependency, "away, says the test") for _ in range(times)]


# ── Kafka ───────────────────────────────────────────────────────────────────────────────────────────────────────


class FakeKafka:
    """The broker: the input topic's partitions, the group's offsets, and what readers of committed data see."""

    def __init__(self, *, partitions: int = 1) -> None:
        self.logs: dict[Partition, list[InputRecord]] = {(INPUT_TOPIC, number): [] for number in range(partitions)}
        self.offsets: dict[Partition, int] = dict.fromkeys(self.logs, 0)
        self.committed: list[list[OutputRecord]] = []
        self.aborted: list[list[OutputRecord]] = []

    def publish(self, *records: InputRecord, partition: int = 0) -> list[InputRecord]:
        """Appends records; offset and partition become those they get here."""
        log = self.logs[INPUT_TOPIC, partition]
        for record in records:
            log.append(replace(record, partition=partition, offset=len(log)))
        return log[len(log) - len(records) :]

    def commit(self, outputs: list[OutputRecord], positions: Mapping[Partition, int]) -> None:
        """Outputs and offsets become visible together."""
        for partition, offset in positions.items():
            assert self.offsets[partition] <= offset <= len(self.logs[partition]), f"{partition}: {offset} after {self.offsets}"
        self.committed.append(outputs)
        self.offsets.update(positions)

    @property
    def outputs(self) -> list[OutputRecord]:
        """What a `read_committed` reader sees, both topics, in order of their transactions."""
        return [output for transaction in self.committed for output in transaction]

    def dead_letters(self) -> list[OutputRecord]:
        return [output for output in self.outputs if output.topic == DEAD_LETTER_TOPIC]

    def enriched(self) -> list[OutputRecord]:
        return [output for output in self.outputs if output.topic == ENRICHED_TOPIC]

    def answered(self) -> Counter[tuple[int, int]]:
        """How often each (partition, offset) of the input was answered in committed transactions."""
        return Counter(source_of(output) for output in self.outputs)

    def all_positions(self) -> Counter[tuple[int, int]]:
        """Each position of the input once: what `answered` should be in the end."""
        return Counter((number, offset) for (_, number), log in self.logs.items() for offset in range(len(log)))

    def is_done(self) -> bool:
        """Every record's offset is committed."""
        return all(self.offsets[partition] == len(log) for partition, log in self.logs.items())


def source_of(output: OutputRecord) -> tuple[int, int]:
    """Partition and offset of the input record that an output answers."""
    headers = dict(output.headers)
    if output.topic == ENRICHED_TOPIC:
        _, partition, offset = (headers[codec.SOURCE_HEADER] or b"").decode().split("/")
        return int(partition), int(offset)
    return int(headers["dlq.partition"] or b""), int(headers["dlq.offset"] or b"")


class FakeSource:
    """The group's member. Rebalances happen while it polls, as the real client's do: put them into `before_poll`."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self._generation = 0
        self._generations: dict[Partition, int] = {}
        self._positions: dict[Partition, int] = {}
        self._resume_at: dict[Partition, int] = {}
        self.before_revoked: Callable[[], None] = lambda: None
        self.after_lost: Callable[[], None] = lambda: None
        self.before_poll: deque[Callable[[], None]] = deque()
        self.in_keep_alive: deque[Callable[[], None]] = deque()
        self.poll_failures, self.rewind_failures = Failures(), Failures()
        self.after_fetch: deque[Callable[[], None]] = deque()
        self.polls: list[list[InputRecord]] = []
        self.keep_alives = 0
        self.rewinds = 0
        self.recalls = 0
        self.assign(*kafka.logs)

    # what the pipeline calls

    def poll(self, *, records_max: int, idle_s: float, linger_s: float) -> list[InputRecord]:
        if self.before_poll:
            self.before_poll.popleft()()
        self.poll_failures.raise_next()
        found: list[InputRecord] = []
        for partition in self._generations:
            start = self._positions[partition]
            taken = self._kafka.logs[partition][start : start + records_max - len(found)]
            self._positions[partition] += len(taken)
            found += taken
        if self.after_fetch:
            self.after_fetch.popleft()()  # a rebalance between the fetch and its hand-over
        if not found:
            time.sleep(min(idle_s, 0.001))
        self.polls.append(found)
        return found

    def keep_alive(self) -> None:
        self.keep_alives += 1
        if self.in_keep_alive:
            self.in_keep_alive.popleft()()

    def generation(self, partition: Partition) -> int | None:
        return self._generations.get(partition)

    def recall(self) -> None:
        self.recalls += 1
        self._resume_at |= {partition: self._kafka.offsets[partition] for partition in self._generations}

    def rewind(self) -> None:
        self.rewind_failures.raise_next()
        self.rewinds += 1
        for partition in self._generations:
            self._generation += 1
            self._generations[partition] = self._generation
            self._positions[partition] = self._resume_at[partition]

    def committed(self, positions: Mapping[Partition, int]) -> None:
        self._resume_at.update({p: offset for p, offset in positions.items() if p in self._generations})

    def lag(self) -> dict[int, int]:
        return {p[1]: len(self._kafka.logs[p]) - self._resume_at[p] for p in self._generations}

    def close(self) -> None:
        """Leaves the group, which takes the partitions back first, as the real client does."""
        self.revoke(*self.owned)

    # what the group does to it

    @property
    def owned(self) -> set[Partition]:
        return set(self._generations)

    def assign(self, *partitions: Partition) -> None:
        for partition in partitions:
            self._generation += 1
            self._generations[partition] = self._generation
            self._positions[partition] = self._resume_at[partition] = self._kafka.offsets[partition]

    def revoke(self, *partitions: Partition) -> None:
        self.before_revoked()
        self._forget(partitions)

    def lose(self, *partitions: Partition) -> None:
        self._forget(partitions)
        self.after_lost()

    def _forget(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            for known in (self._generations, self._positions, self._resume_at):
                known.pop(partition, None)


class FakeDelivery:
    """Transactions: open, committed, aborted. `*_failures` are raised by the next calls."""

    def __init__(self, kafka: FakeKafka, source: FakeSource) -> None:
        self._kafka = kafka
        self._source = source
        self.open: list[OutputRecord] = []
        self._is_open = False
        self._committing: dict[Partition, int] | None = None
        self._must_abort = False
        self._in_doubt = False
        self.doubts: deque[bool] = deque()  # commits without an answer, and whether they happened
        self.sends: list[list[OutputRecord]] = []
        self.send_failures, self.commit_failures, self.abort_failures = Failures(), Failures(), Failures()

    def send(self, outputs: Iterable[OutputRecord]) -> None:
        assert not self._must_abort, "a transaction that was aborted by the broker takes nothing more"
        assert self._committing is None, "the transaction is being committed"
        taken = list(outputs)
        self._is_open = True
        self._failing(self.send_failures)
        self.open += taken
        self.sends.append(taken)

    def commit(self, positions: Mapping[Partition, int]) -> None:
        assert not self._must_abort, "a transaction that was aborted by the broker cannot be committed"
        assert self._committing in (None, dict(positions)), "a commit is repeated unchanged"
        assert positions, "a commit without offsets"
        assert self._is_open, "offsets whose answers are in no open transaction: their records would be skipped"
        assert set(positions) <= self._source.owned, f"offsets of {positions}, but {self._source.owned} are owned"
        self._failing(self.commit_failures)
        happens = self.doubts.popleft() if self.doubts else None
        if happens is not False:
            outputs, self.open, self._committing, self._is_open = self.open, [], None, False
            self._kafka.commit(outputs, positions)
        if happens is not None:
            self._in_doubt = self._must_abort = True
            raise TransactionAborted("no answer")

    def abort(self) -> bool:
        self.abort_failures.raise_next()
        self._kafka.aborted.append(self.open)
        self.open, self._committing, self._must_abort, self._is_open = [], None, False, False
        in_doubt, self._in_doubt = self._in_doubt, False
        return in_doubt

    def close(self) -> None:
        """Drops what is open."""
        if self._is_open:
            self.abort_failures.clear()
            self.abort()

    def _failing(self, failures: Failures) -> None:
        try:
            failures.raise_next()
        except TransactionAborted:
            self._must_abort = True
            raise


# ── store and registry ──────────────────────────────────────────────────────────────────────────────────────────


class FakeStore:
    """The prediction store, with the guard's rules of `prediction_store`. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.states: dict[str, State] = {}
        self.written: list[list[State]] = []
        self.write_failures, self.read_failures = Failures(), Failures()
        self.before_write: deque[Callable[[], None]] = deque()

    def unchanged(self, expected: Mapping[str, str], *, model_epoch: int, recall: Recall) -> dict[str, Enriched]:
        with self._lock:
            self.read_failures.raise_next()
            held = {key: self.states.get(key) for key in expected}
        return {
            key: replace(state, version=0, cover=CoverUse.NONE)
            for key, state in held.items()
            if isinstance(state, Enriched) and (state.content, state.model_epoch) == (expected[key], model_epoch)
        }

    def write(self, states: Sequence[State], *, now_ms: int) -> list[State]:
        if self.before_write:
            self.before_write.popleft()()
        with self._lock:
            self.write_failures.raise_next()
            assert len({state.listing_id for state in states}) == len(states), "a batch holds a listing once"
            self.written.append(list(states))
            return [self._write(state) for state in states]

    def _write(self, state: State) -> State:
        stored = self.states.get(state.listing_id)
        if stored is not None and _is_refused(stored, state):
            return stored
        self.states[state.listing_id] = state
        return state


def _is_refused(stored: State, offered: State) -> bool:
    if offered.version != stored.version or isinstance(offered, Tombstone):
        return offered.version < stored.version
    return isinstance(stored, Tombstone) or offered.model_epoch < stored.model_epoch


class FakeSchemas:
    """A registry that knows some schemas."""

    def __init__(self, *schemas: ParsedSchema) -> None:
        self._schemas = {one.schema_id: one for one in schemas}
        self.failures = Failures()

    def schemas(self, ids: Collection[int]) -> dict[int, ParsedSchema | UnknownSchema]:
        self.failures.raise_next()
        return {one: self._schemas.get(one) or UnknownSchema(one, f"the registry has no schema {one}") for one in ids}


@dataclass
class StopWhen(threading.Event):
    """A stop signal that sets itself when a condition holds; a test fails when that takes longer than `deadline_s`."""

    condition: Callable[[], bool]
    deadline_s: float = 10.0
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        super().__init__()

    def is_set(self) -> bool:
        if not super().is_set() and self.condition():
            self.set()
        late = time.monotonic() - self.started_s > self.deadline_s
        assert super().is_set() or not late, f"not so within {self.deadline_s} s"
        return super().is_set()


def only(values: Iterable[Any]) -> Any:
    """The one value that there is."""
    found = list(values)
    assert len(found) == 1, found
    return found[0]


def eventually(holds: Callable[[], bool], *, deadline_s: float = 10.0) -> None:
    """Returns as soon as it holds; a test fails when that takes longer than `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"not so within {deadline_s} s"
        time.sleep(0.001)
