"""Runs set-up commands: a deadline for each, output to a log, and the log's end in the error."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.infrastructure.paths import log_folder, tail


class SetupError(Exception):
    """A step of the set-up did not work. The message is one line a person can act on."""


def say(text: str) -> None:
    print(f"infrastructure: {text}", flush=True)


def run(
    argv: Sequence[str],
    *,
    log_name: str,
    timeout_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs to completion, appending stdout and stderr to the log.

    Raises:
        SetupError: the program is missing, it exited non-zero, or the time was up.
    """
    log = log_folder() / f"{log_name}.log"
    shown = " ".join(argv[:4])
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(argv)}\n".encode())
        output.flush()
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=timeout_seconds, env=env, cwd=cwd
            )
        except FileNotFoundError as missing:
            raise SetupError(f"`{argv[0]}` is not installed") from missing
        except subprocess.TimeoutExpired as late:
            raise SetupError(f"`{shown} …` was not done after {timeout_seconds:.0f} s, see {log}") from late
    if done.returncode != 0:
        raise SetupError(f"`{shown} …` exited {done.returncode}, see {log}; it ends:\n{tail(log, 8)}")


class Stopwatch:
    """`with Stopwatch("building images"):` says so before, and the seconds after."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = 0.0

    def __enter__(self) -> None:
        say(f"{self._what} …")
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outcome = "done" if kind is None else "failed"
        say(f"{self._what}: {outcome} after {time.monotonic() - self._started:.0f} s")
