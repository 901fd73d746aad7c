"""Processes that use one cache, for `test_cache.py`: `race FOLDER` and `kill FOLDER`. Each prints one JSON line.

They fork from a process of their own, which has no threads.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from build_engine import cache as cache_module
from build_engine.cache import Built, EngineCache, Fingerprint

PLAN = bytes(range(256)) * 40
PROCESSES = 20


def a_fingerprint(**changes: Any) -> Fingerprint:
    values: dict[str, Any] = {
        "onnx_sha256": "a" * 64,
        "options": {"precision": "fp16", "profile": [1, 256, 1024]},
        "flavour": "tensorrt",
        "version": "10.6.0",
        "compute_capability": "9.0",
        "gpu": "NVIDIA H100",
    }
    return Fingerprint(**(values | changes))


def a_cache(
    folder: Path, said: list[str] | None = None, *, size_max_bytes: int = 10**9, lock_timeout_s: float = 30
) -> EngineCache:
    say = print if said is None else said.append
    return EngineCache(folder, size_max_bytes=size_max_bytes, lock_timeout_s=lock_timeout_s, say=say)


def race(folder: Path) -> dict[str, Any]:
    """All start together; each build appends a byte to a file."""
    builds, start = folder / "builds", time.monotonic() + 0.3

    def build() -> Built:
        with builds.open("ab") as file:
            file.write(b"x")
        time.sleep(0.3)
        return Built(PLAN, verified=True)

    def child() -> None:
        time.sleep(max(0.0, start - time.monotonic()))
        with a_cache(folder, []).get_or_build(a_fingerprint(), build) as engine:
            assert engine.plan == PLAN

    children = [_forked(child) for _ in range(PROCESSES)]
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    return {"failed": sum(status != 0 for status in statuses), "builds": builds.stat().st_size}


def kill(folder: Path) -> dict[str, Any]:
    """A writer is killed before each line of `cache.py` that it runs, in turn; then a reader and a second builder come."""
    killed, broken, unbuilt, left = 0, 0, 0, 0
    while True:
        own = folder / str(killed)
        status = os.waitpid(_forked(partial(_build_killed_at, own, line=killed)), 0)[1]
        said: list[str] = []
        cache = a_cache(own, said)
        engine = cache.find(a_fingerprint())
        broken += engine is not None and engine.plan != PLAN
        again = cache.get_or_build(a_fingerprint(), lambda: Built(PLAN, verified=True))
        unbuilt += again.plan != PLAN
        left += len(list(own.glob(".unfinished-*")))
        if not os.WIFSIGNALED(status):
            return {"killed": killed, "broken": broken, "unbuilt": unbuilt, "left": left, "status": status}
        killed += 1


def _build_killed_at(folder: Path, *, line: int) -> None:
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != cache_module.__file__:
            return None
        if event == "line":
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return trace

    sys.settrace(trace)
    a_cache(folder, []).get_or_build(a_fingerprint(), lambda: Built(PLAN, verified=True))
    sys.settrace(None)


def _forked(work: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - a child must not return into the caller's code
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    print(json.dumps({"race": race, "kill": kill}[sys.argv[1]](Path(sys.argv[2]))))
