"""Steps, one process each: timed, with a deadline, and none stops the next one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.gpu.install import Places

_GRACE_S = 30.0  # to unwind after SIGTERM: broker and store are processes of their own
_LINES_SHOWN = 8

Status = Literal["ok", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Step:
    """`command` is what follows the interpreter; `read` makes figures of (stdout, stderr), and may raise ValueError."""

    name: str
    command: tuple[str, ...]
    seconds_max: float
    read: Callable[[str, str], dict[str, Any]]


@dataclass(slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        reason: of a failure, the last lines that it said.
        figures: also of a step that failed after it had measured.
        begun_at: in UTC.
    """

    status: Status
    reason: str = ""
    seconds: float = 0.0
    begun_at: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_document(self) -> dict[str, Any]:
        return asdict(self)


def environment(places: Places) -> dict[str, str]:
    """This process's, with what was installed in front of it."""
    found = dict(os.environ)
    root = Path(__file__).resolve().parents[2]
    for variable, folders in (("PYTHONPATH", (places.packages, root)), ("LD_LIBRARY_PATH", (places.libraries,))):
        existing = [found[variable]] if found.get(variable) else []
        found[variable] = ":".join([*(str(folder) for folder in folders if folder.is_dir()), *existing])
    return {**found, "PYTHONUNBUFFERED": "1"}


@contextmanager
def noted(say: Callable[[str], None], name: str) -> Iterator[Outcome]:
    """An outcome whose time is taken, and whose end is said; whatever is raised inside is a failure, not an end."""
    outcome, begun_s = Outcome("ok", begun_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())), time.monotonic()
    say(f"{name} …")
    try:
        yield outcome
    except Exception as error:  # noqa: BLE001  the next step must run whatever became of this one
        outcome.status, outcome.reason = "failed", f"{type(error).__name__}: {error}"
    outcome.seconds = round(time.monotonic() - begun_s, 2)
    say(f"{name}: {outcome.status} after {outcome.seconds:.1f} s" + (f": {outcome.reason}" if outcome.reason else ""))


def run_steps(steps: Sequence[Step], env: Mapping[str, str], say: Callable[[str], None]) -> Iterator[tuple[str, Outcome]]:
    """Every step, one after the other, with its name."""
    for step in steps:
        with noted(say, step.name) as outcome:
            _run(step, env, outcome)
        yield step.name, outcome


def _run(step: Step, env: Mapping[str, str], outcome: Outcome) -> None:
    process = subprocess.Popen(
        [sys.executable, *step.command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env,
    )  # fmt: skip
    late = ""
    try:
        said, complaints = process.communicate(timeout=step.seconds_max)
    except subprocess.TimeoutExpired:
        late = f"not done after {step.seconds_max:g} s; "
        said, complaints = _ended(process)
    try:
        outcome.figures = step.read(said, complaints)
    except (ValueError, LookupError, OSError) as error:
        if process.returncode == 0 and not late:
            raise ValueError(f"what it printed is no result: {error}: {said[-200:]!r}") from error
    if late or process.returncode != 0:
        outcome.status, outcome.reason = "failed", f"{late}exit code {process.returncode}: {last_words(complaints)}"


def _ended(process: "subprocess.Popen[str]") -> tuple[str, str]:
    process.terminate()
    try:
        return process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def last_words(complaints: str) -> str:
    """The last line that is not indented and what belongs to it: of a traceback the error, of TensorRT's what it logged."""
    lines = complaints.rstrip().splitlines()
    begin = next((index for index in reversed(range(len(lines))) if lines[index][:1].strip()), 0)
    return "; ".join(line.strip() for line in lines[begin : begin + _LINES_SHOWN]) or "it said nothing"


def last_line(said: str, complaints: str) -> dict[str, Any]:
    """The figures of our own steps: one line of JSON, the last; libraries may print before it."""
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found
