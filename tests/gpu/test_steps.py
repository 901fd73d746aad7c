"""Steps are processes: whatever becomes of one is said, and the others run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.install import Places
from tests.gpu.steps import Outcome, Step, environment, last_line, last_words, run_steps

GOOD = "print('noise'); print('{\"rows\": 3}')"


def a_step(code: str, *, name: str = "one", seconds_max: float = 60) -> Step:
    return Step(name, ("-c", code), seconds_max, last_line)


def run(*steps: Step) -> tuple[dict[str, Outcome], list[str]]:
    said: list[str] = []
    return dict(run_steps(steps, os.environ, said.append)), said


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such engine')", "exit code 1: ValueError: no such engine"),
        ("import sys; sys.stderr.write('broken:\\n  CUDA error 35\\n'); sys.exit(3)", "exit code 3: broken:; CUDA error 35"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11: it said nothing"),
        ("print('no JSON')", "ValueError: what it printed is no result"),
        ("pass", "ValueError: what it printed is no result"),
    ],
    ids=["an error", "an exit code", "a crash", "no figures", "nothing"],
)
def test_a_step_that_fails_is_said_and_the_next_one_runs(code: str, reason: str) -> None:
    outcomes, said = run(a_step(code, name="first"), a_step(GOOD, name="second"))
    assert outcomes["first"].status == "failed"
    assert outcomes["first"].reason.startswith(reason)
    assert (outcomes["second"].status, outcomes["second"].figures) == ("ok", {"rows": 3})
    assert any("first: failed" in line and reason in line for line in said)


def test_a_step_that_takes_too_long_may_unwind(tmp_path: Path) -> None:
    unwound = tmp_path / "unwound"
    code = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    time.sleep(60)
finally:
    pathlib.Path({str(unwound)!r}).touch()
"""
    outcomes, _ = run(a_step(code, seconds_max=2.0))
    assert outcomes["one"].status == "failed"
    assert outcomes["one"].reason.startswith("not done after 2 s; exit code")
    assert unwound.exists()


def test_a_step_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    outcomes, _ = run(a_step(GOOD, name="first"), a_step(GOOD, name="second"))
    assert {outcome.status for outcome in outcomes.values()} == {"failed"}
    assert "FileNotFoundError" in outcomes["second"].reason


def test_a_step_that_fails_after_it_has_measured_keeps_its_figures() -> None:
    outcomes, _ = run(a_step(GOOD + "; raise SystemExit('not verified')"))
    assert outcomes["one"].status == "failed"
    assert outcomes["one"].figures == {"rows": 3}


def test_of_a_traceback_the_error_is_shown() -> None:
    assert last_words("Traceback (most recent call last):\n  File x\nTensorRTError: refused\n  error: no kernel\n") == (
        "TensorRTError: refused; error: no kernel"
    )


def test_what_was_installed_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "former")
    places = Places(tmp_path)
    places.packages.mkdir()
    found: dict[str, Any] = environment(places)
    assert found["PYTHONPATH"].split(":") == [str(places.packages), str(Path(__file__).resolve().parents[2]), "former"]
