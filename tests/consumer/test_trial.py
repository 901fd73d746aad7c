"""Trying a record in a child process: a real child, really killed."""

import ctypes
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from consumer.errors import DrainIncomplete
from consumer.inference import Arrays
from consumer.prediction import Predictor
from consumer.records import Rejected, Stage
from consumer.trial import Trial
from model.bundle import Bundle
from tests.examples import LISTING_SCHEMA, a_change_event, a_deletion, a_numbered_book, an_input_record
from tests.fake_model import FakeBackend, fingerprint

SCHEMAS = {LISTING_SCHEMA.schema_id: LISTING_SCHEMA}
SOUND, DEADLY = a_change_event(a_numbered_book(1), offset=1), a_change_event(a_numbered_book(13), offset=13)


class DeadlyBackend(FakeBackend):
    """Dies of one listing in the way that its name says."""

    def __init__(self, how: str, deadly: int) -> None:
        super().__init__()
        self._how, self._deadly = how, deadly
        self.folder = Path()

    def infer(self, inputs: Arrays) -> dict[str, object]:  # type: ignore[override]
        self.poison = {self._deadly}
        try:
            return super().infer(inputs)  # type: ignore[return-value]
        except Exception:
            if self._how == "segfault":
                ctypes.string_at(0)
            if self._how == "exit":
                os._exit(7)
            if self._how == "oom":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "hang":
                time.sleep(60)
            if self._how == "once" and not (mark := self.folder / "died").exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "once":
                self.poison = set()
                return super().infer(inputs)  # type: ignore[return-value]
            raise


def open_deadly(how: str, folder: Path) -> Predictor:
    """What the child opens."""
    if how == "no start":
        os._exit(9)
    bundle = Bundle.load(folder)
    backend = DeadlyBackend(how, fingerprint(bundle, a_numbered_book(13)))
    backend.folder = folder.parent
    return Predictor(bundle, backend, cover_bytes_max=1_000_000)


def a_trial(how: str, bundle: Bundle, **options: float) -> Trial:
    return Trial(partial(open_deadly, how, bundle.path), **options)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "signal SIGSEGV"),
        ("oom", "signal SIGKILL"),
        ("exit", "exit code 7"),
        ("hang", "no answer within 1 s"),
    ],
)
def test_a_record_that_kills_is_found_and_the_others_survive(tiny_bundle: Bundle, how: str, reason: str) -> None:
    """Whatever ends the child twice is rejected in the stage where it did; records before and after go through."""
    trial = a_trial(how, tiny_bundle, seconds_per_record=1.0)
    try:
        verdicts = [trial.verdict(record, SCHEMAS) for record in (SOUND, DEADLY, SOUND)]
    finally:
        trial.close()
    assert verdicts == [None, Rejected(DEADLY, Stage.INFERENCE, f"it ends the process that takes it: {reason}"), None]


def test_a_child_that_something_else_killed_accuses_nobody(tiny_bundle: Bundle) -> None:
    """A record that goes through a second child is innocent of the first one's end."""
    (tiny_bundle.path.parent / "died").unlink(missing_ok=True)
    trial = a_trial("once", tiny_bundle)
    try:
        assert trial.verdict(DEADLY, SCHEMAS) is None
        assert (tiny_bundle.path.parent / "died").exists()
        assert trial._child is not None
        os.kill(trial._child[0].pid or 0, signal.SIGKILL)  # while it waits for the next record
        assert trial.verdict(SOUND, SCHEMAS) is None
    finally:
        trial.close()


def test_a_child_that_cannot_start_accuses_nobody(tiny_bundle: Bundle) -> None:
    """Where no child comes up its records go on untried."""
    assert a_trial("no start", tiny_bundle).verdict(DEADLY, SCHEMAS) is None


def test_what_is_merely_bad_is_rejected_as_ever(tiny_bundle: Bundle) -> None:
    """A record that the service would reject is rejected with the same words; a deletion passes."""
    trial = a_trial("raise", tiny_bundle)
    bad = an_input_record(b"{}", offset=5)
    try:
        assert trial.verdict(a_deletion("bd-1", version=3), {}) is None
        verdict = trial.verdict(bad, {})
        assert verdict is not None
        assert (verdict.record, verdict.stage) == (bad, Stage.DECODE)
        assert trial.verdict(DEADLY, SCHEMAS) == Rejected(DEADLY, Stage.INFERENCE, "poisoned")
    finally:
        trial.close()


def test_a_stop_ends_a_trial(tiny_bundle: Bundle) -> None:
    """Giving up ends the child and the wait for it, and nobody is found guilty of that."""
    trial = a_trial("hang", tiny_bundle)
    assert trial.verdict(SOUND, SCHEMAS) is None
    later = threading.Timer(0.5, trial.give_up)
    later.start()
    with pytest.raises(DrainIncomplete):
        trial.verdict(DEADLY, SCHEMAS)
    later.join()
    assert trial._child is None


def test_a_child_of_a_former_model_judges_no_more(tiny_bundle: Bundle) -> None:
    """After another model took over, the next record is tried by a child that opened that one."""
    trial = a_trial("segfault", tiny_bundle)
    try:
        assert trial.verdict(SOUND, SCHEMAS) is None
        trial.use(partial(open_deadly, "raise", tiny_bundle.path))
        assert trial.verdict(DEADLY, SCHEMAS) == Rejected(DEADLY, Stage.INFERENCE, "poisoned")
    finally:
        trial.close()
