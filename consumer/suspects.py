"""Who died where: finds records that kill the process (a segmentation fault in a decoder, the kernel's out-of-memory kill).

Each process leaves a mark for each of its partitions, `<offset> <deaths> <process>`: where it began, and how many processes
died there before. After its first commit the mark says `-` for the offset, and is not written again: a steady service writes
nothing. A clean end removes it. So a mark that a successor finds is that of a process that died, and where
`crashes_before_trial` of them did, as many records as one process holds in flight are tried in a child process first
(`consumer/trial.py`).

A false alarm (a node that was lost, SIGKILL by hand) costs some time and nothing else: what survives the trial goes on.
"""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from consumer import codec
from consumer.batches import Partition, partition_of
from consumer.errors import DependencyUnavailable, DrainIncomplete, EnricherError
from consumer.records import InputRecord, Rejected
from consumer.trial import Schemas, Verdict

log = structlog.get_logger(__name__)

_MARK = re.compile(r"(-|\d+) (\d+) (\S+)")
_STEADY = "-"


class Marks(Protocol):
    """What is needed of the store; see `crash_marks.CrashMarks`."""

    def read(self, partition: Partition) -> str | None: ...
    def write(self, partition: Partition, mark: str | None) -> None: ...


class Court(Protocol):
    """What is needed of the child process; see `trial.Trial`."""

    def verdict(self, record: InputRecord, schemas: Schemas) -> Verdict: ...
    def close(self) -> None: ...
    def give_up(self) -> None: ...


@dataclass(slots=True)
class _Watched:
    """A partition since it was gained or rewound: `end` is the offset after the last suspect once that was read."""

    deaths: int
    suspects: int
    end: int | None = None
    steady: bool = False


class Suspects:
    """`tried` may run on one thread while the others' methods run on another.

    Args:
        crashes_before_trial: processes that must have died; 0 turns all of this off.
        reach: records that one process can have had in flight.
        progress: called after each trial.
    """

    def __init__(
        self, marks: Marks, trial: Court, *, crashes_before_trial: int, reach: int, progress: Callable[[], None] = lambda: None
    ) -> None:
        self._marks = marks
        self._trial = trial
        self._crashes_before_trial = crashes_before_trial
        self._reach = reach
        self._progress = progress
        self._process = uuid.uuid4().hex[:12]
        self._begun: dict[Partition, int] = {}  # the generation it was last begun under
        self._watched: dict[Partition, _Watched] = {}
        self.on_trial = False  # whether the last batch held suspects that were tried: what has a trial of its own is left out

    def begin(self, records: Sequence[InputRecord], generations: Mapping[Partition, int | None]) -> None:
        """Leaves a mark for each partition that is new here, before any of its records is touched. May be done again.

        Raises:
            DependencyUnavailable: the store is away.
        """
        for partition, generation in generations.items() if self._crashes_before_trial else ():
            if generation is None or generation <= self._begun.get(partition, -1):
                continue  # also a batch of an older generation, which must not write over a successor's mark
            offset = next(record.offset for record in records if partition_of(record) == partition)
            deaths = self._deaths(self._marks.read(partition))
            self._marks.write(partition, f"{offset} {deaths} {self._process}")
            self._begun[partition] = generation
            self._watched[partition] = _Watched(deaths, self._reach if deaths else 0)
            if deaths:
                log.warning("processes_died_here", topic=partition[0], partition=partition[1], offset=offset, deaths=deaths)

    def tried(self, records: Sequence[InputRecord], schemas: Schemas) -> list[Rejected]:
        """Tries those of the records that are suspect; returns the guilty, and what the child rejected otherwise."""
        rejected: list[Rejected] = []
        self.on_trial = False
        uneasy = {partition: watched for partition, watched in tuple(self._watched.items()) if watched.suspects}
        for record in records if uneasy else ():  # a steady service pays nothing for each record
            watched = uneasy.get(partition_of(record))
            if watched is None or watched.suspects == 0:
                continue
            watched.suspects -= 1
            if watched.suspects == 0:
                watched.end = record.offset + 1
            if watched.deaths < self._crashes_before_trial:
                continue
            self.on_trial = True
            verdict = self._trial.verdict(record, {one: schemas[one] for one in codec.schema_ids([record])})
            if verdict is not None:
                rejected.append(verdict)
            self._progress()
        if not self.on_trial:
            self._trial.close()
        return rejected

    def committed(self, positions: Mapping[Partition, int]) -> None:
        """A partition past its suspects, or that had none, is steady from its next commit on."""
        for partition, position in positions.items():
            watched = self._watched.get(partition)
            if watched is None or watched.steady:
                continue
            if watched.deaths and (watched.end is None or position < watched.end):
                continue
            watched.steady = self._wrote(partition, f"{_STEADY} 0 {self._process}")

    def leave(self, generation: Callable[[Partition], int | None]) -> None:
        """Removes the marks of partitions that are not ours any more."""
        for partition in [one for one in tuple(self._watched) if generation(one) is None]:
            del self._watched[partition]
            self._remove(partition)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a process's work: an end on purpose removes its marks, any other leaves them to its successor."""
        try:
            yield
        except DrainIncomplete:  # perhaps a record that never comes to an end
            raise
        except EnricherError:
            self._remove_all()
            raise
        else:
            self._remove_all()
        finally:
            self._trial.close()

    def give_up(self) -> None:
        """Ends a trial under way on another thread."""
        self._trial.give_up()

    def _deaths(self, mark: str | None) -> int:
        if (found := _MARK.fullmatch(mark or "")) is None:
            return 0
        _, deaths, process = found.groups()
        return int(deaths) + (process != self._process)  # a rewind in this process is nobody's death

    def _remove_all(self) -> None:
        for partition in self._watched:
            self._remove(partition)

    def _remove(self, partition: Partition) -> None:
        """Only ours: a successor may have left its own by now. A mark that stays is a false alarm."""
        try:
            found = _MARK.fullmatch(self._marks.read(partition) or "")
        except DependencyUnavailable:
            return
        if found is not None and found[3] == self._process:
            self._wrote(partition, None)

    def _wrote(self, partition: Partition, mark: str | None) -> bool:
        try:
            self._marks.write(partition, mark)
        except DependencyUnavailable as error:
            log.warning("crash_mark_not_written", reason=error.reason)
            return False
        return True


class _Nothing:
    """No store and no child."""

    def read(self, partition: Partition) -> None: ...
    def write(self, partition: Partition, mark: str | None) -> None: ...
    def verdict(self, record: InputRecord, schemas: Schemas) -> None: ...
    def close(self) -> None: ...
    def give_up(self) -> None: ...


def no_suspects() -> Suspects:
    """For a pipeline without a store of marks: watches nothing."""
    return Suspects(_Nothing(), _Nothing(), crashes_before_trial=0, reach=0)
