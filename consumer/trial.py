"""Trying records one by one in a child process, so that what kills a process kills that one.

The child is an interpreter of its own with a model of its own. It takes a record all the way that can kill: decode, cover,
features, inference. A record is guilty when it ended two children in a row, each of which had proved itself on the bundle's
golden inputs just before or on the records before it: a child that something else killed accuses nobody.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import structlog

from consumer import codec
from consumer.covers import cover_pixels
from consumer.errors import DrainIncomplete
from consumer.prediction import Predictor
from consumer.records import InputRecord, Rejected, Stage
from consumer.schemas import ParsedSchema, UnknownSchema

log = structlog.get_logger(__name__)

SECONDS_PER_RECORD = 10.0
START_SECONDS = 120.0  # an engine is deserialized in it, never built
MEMORY_BYTES = 4 * 2**30  # what one record may ask for beyond what the warm model holds
DEATHS_OF_THE_GUILTY = 2

Schemas = Mapping[int, ParsedSchema | UnknownSchema]
Verdict = Rejected | None


class _Died(Exception):
    """The child ended on a record: in which stage, and how."""

    def __init__(self, stage: Stage, how: str) -> None:
        self.stage = stage
        super().__init__(how)


class Trial:
    """A child process, started when it is first needed and again whenever it died. `verdict` belongs to one thread.

    Args:
        open_predictor: a function of a module, or a partial of one: the child calls it, and warms up what it returns.
    """

    def __init__(self, open_predictor: Callable[[], Predictor], *, seconds_per_record: float = SECONDS_PER_RECORD) -> None:
        self._open_predictor = open_predictor
        self._opened = open_predictor  # the child's
        self._seconds_per_record = seconds_per_record
        self._child: tuple[BaseProcess, Connection] | None = None
        self._given_up = False

    def verdict(self, record: InputRecord, schemas: Schemas) -> Verdict:
        """The record as the child rejected it, or as it killed the child; None when it went through.

        A child that cannot even start finds nobody guilty. Blocks up to two starts and two times `seconds_per_record`.

        Raises:
            DrainIncomplete: `give_up` was called.
        """
        if self._opened is not self._open_predictor:
            self.close()
        for deaths in range(1, DEATHS_OF_THE_GUILTY + 1):
            try:
                child = self._child or self._start()
            except _Died as error:
                log.error("trial_impossible", reason=str(error), effect="the record goes on untried")
                return None
            try:
                return self._try(child, record, schemas)
            except _Died as error:
                log.warning("trial_died", record=_where(record), stage=error.stage, reason=str(error), deaths=deaths)
                stage, how = error.stage, str(error)
        return Rejected(record, stage, f"it ends the process that takes it: {how}")

    def use(self, open_predictor: Callable[[], Predictor]) -> None:
        """The next verdict's child opens this. May be called on any thread."""
        self._open_predictor = open_predictor

    def close(self) -> None:
        """Ends the child; a later verdict starts another."""
        if self._child is not None:
            process, connection = self._child
            self._child = None
            process.kill()
            process.join()
            connection.close()

    def give_up(self) -> None:
        """Ends a verdict that is waited for on another thread, and those to come."""
        self._given_up = True
        if (child := self._child) is not None:
            child[0].kill()

    def _start(self) -> tuple[BaseProcess, Connection]:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the client's and the backend's threads
        connection, theirs = spawn.Pipe()
        self._opened = self._open_predictor
        process = spawn.Process(target=_child, args=(theirs, self._opened), name="trial", daemon=True)
        process.start()
        theirs.close()  # or its end would never be seen
        self._child = (process, connection)
        self._answer(self._child, START_SECONDS)
        return self._child

    def _try(self, child: tuple[BaseProcess, Connection], record: InputRecord, schemas: Schemas) -> Verdict:
        with contextlib.suppress(OSError):  # it died meanwhile: the answer's end says so
            child[1].send((record, schemas))
        return self._answer(child, self._seconds_per_record)

    def _answer(self, child: tuple[BaseProcess, Connection], seconds: float) -> Verdict:
        process, connection = child
        stage, deadline_s = Stage.TRIAL, time.monotonic() + seconds
        try:
            while connection.poll(max(0.0, deadline_s - time.monotonic())):
                said: Stage | tuple[Verdict] = connection.recv()
                if isinstance(said, tuple):
                    return said[0]
                stage = said
            how = f"no answer within {seconds:g} s"
        except (EOFError, OSError):
            process.join()
            how = _how_it_ended(process.exitcode or 0)
        self.close()
        if self._given_up:
            raise DrainIncomplete("the trial of a suspect record was given up; it is read again")
        raise _Died(stage, how)


def _where(record: InputRecord) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"


def _how_it_ended(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


# ── the child ───────────────────────────────────────────────────────────────────────────────────────────────────


def _child(connection: Connection, open_predictor: Callable[[], Predictor]) -> None:
    """Says where it is (a Stage), then what came of it (a tuple of one verdict), record after record."""
    os.setsid()  # Ctrl-C at a terminal is for the service, which then ends this
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go when memory is short
    with contextlib.closing(open_predictor()) as predictor:
        predictor.warm_up()
        _limit_memory()
        connection.send((None,))
        with contextlib.suppress(EOFError):  # the service is gone, or needs no more
            while True:
                record, schemas = connection.recv()
                connection.send((_judged(record, schemas, predictor, connection.send),))


def _judged(record: InputRecord, schemas: Schemas, predictor: Predictor, now_in: Callable[[Stage], None]) -> Verdict:
    now_in(Stage.DECODE)
    change = codec.decode(record, schemas)
    if isinstance(change, Rejected):
        return change
    if change.listing is None:
        return None
    now_in(Stage.COVER)
    cover_pixels(change, predictor.feature_settings, bytes_max=predictor.cover_bytes_max)
    now_in(Stage.FEATURES)
    prepared, rejected = predictor.prepare([change])
    if not rejected:
        now_in(Stage.INFERENCE)
        _, rejected = predictor.predict(prepared)
    return rejected[0] if rejected else None


def _limit_memory() -> None:
    """A record that asks for more than `MEMORY_BYTES` fails here, before the kernel has to choose a process."""
    with contextlib.suppress(OSError, ValueError):  # no /proc, or the limit is lower already
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
