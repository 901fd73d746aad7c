"""Notes of the processes we started, so that we end those and no others, even after a crash.

A process id may be given to another program later: a note also holds the moment the kernel started the process.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.infrastructure.paths import notes_folder


def write(name: str, pid: int, *, folder: Path | None = None) -> None:
    """Notes a process that this one has just started; `folder`, its data, goes when `end` ends it."""
    owner = os.getpid()
    note: dict[str, Any] = {
        "pid": pid,
        "started": _start_time(pid),
        "owner": owner,
        "owner_started": _start_time(owner),
    }
    if folder is not None:
        note["folder"] = str(folder)
    _path(name).write_text(json.dumps(note))


def remove(name: str) -> None:
    _path(name).unlink(missing_ok=True)


def names() -> list[str]:
    return sorted(path.stem for path in notes_folder().glob("*.json"))


def is_running(name: str) -> bool:
    note = _read(name)
    return note is not None and _is_same(note["pid"], note["started"])


def owner_is_running(name: str) -> bool:
    note = _read(name)
    return note is not None and _is_same(note["owner"], note["owner_started"])


def end(name: str, kind: signal.Signals, timeout_seconds: float) -> bool:
    """Signals the noted process, waits for its end, removes its data and the note; True when it was running.

    After the deadline it is killed.
    """
    note = _read(name)
    running = note is not None and _is_same(note["pid"], note["started"])
    if note is not None and running:
        os.kill(note["pid"], kind)
        os.kill(note["pid"], signal.SIGCONT)  # a paused process would take no other signal
        deadline = time.monotonic() + timeout_seconds
        while _is_same(note["pid"], note["started"]):
            if time.monotonic() > deadline:
                os.kill(note["pid"], signal.SIGKILL)
                break
            time.sleep(0.1)
    if note is not None and "folder" in note:
        shutil.rmtree(note["folder"], ignore_errors=True)
    remove(name)
    return running


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _path(name: str) -> Path:
    return notes_folder() / f"{name}.json"


def _read(name: str) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads(_path(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return note


def _is_same(pid: int, started: int | None) -> bool:
    return started is not None and _start_time(pid) == started


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None when there is none, it is a zombie, or this is not Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
