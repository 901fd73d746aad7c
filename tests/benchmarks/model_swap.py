"""What a running service feels of another model: `python -m tests.benchmarks.model_swap`.

Listings that the model has not seen are sent on a fixed schedule, as in `latency.py`. Every few seconds the pointer changes: to a
bundle that has to be loaded, then back to the former one, in turn. Each event is sorted by what went on when it was due:

    quiet      no swap is under way
    new model  from the moment a bundle is begun to be loaded to half a second after it took over
    rollback   the same for a former one

"gap" is the longest time without an answer. Memory is that of the process, before, between and at its highest while loading.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from tests.benchmarks.latency import Reader, Sender, endless_events, one_at_a_time, wait_for
from tests.benchmarks.surroundings import own_surroundings
from tests.faults.bundles import another_bundle, point
from tests.faults.replicas import Replica
from tests.journey.running import Surroundings, read_topic

RESULTS = Path(__file__).parent / "results" / "model_swap.json"
AFTER_S = 0.5
SETTLE_S = 2.0
console = Console()


class Swapper:
    """Swaps on a thread of its own, `every_s` seconds, and notes the memory."""

    def __init__(self, replica: Replica, folder: Path, pointer: Path, swaps: int, every_s: float) -> None:
        self.memory_mb: dict[str, float] = {"one model": replica.memory_mb()}
        self._replica, self._folder, self._pointer = replica, folder, pointer
        self._swaps, self._every_s = swaps, every_s
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        for number in range(1, self._swaps + 1):
            time.sleep(self._every_s / 2)
            epoch = 100 + 2 * number
            new = another_bundle(self._folder / f"books-{number}", version=f"{number}.0.0", epoch=epoch, labels=5)
            highest = self._swap(new, epoch)
            self.memory_mb["two models" if number == 1 else f"two models, {number} loads"] = self._replica.memory_mb()
            self.memory_mb["highest"] = max(highest, self.memory_mb.get("highest", 0))
            time.sleep(self._every_s / 2)
            self._swap(self._folder / "books-0", epoch + 1)

    def _swap(self, bundle: Path, epoch: int) -> float:
        point(self._pointer, bundle, epoch)
        highest, deadline_s = 0.0, time.monotonic() + 30
        while not re.search(f'"epoch": {epoch}, "former"', self._replica.log()):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"no takeover within 30 s: {self._replica.log()[-2000:]}")
            highest = max(highest, self._replica.memory_mb())
            time.sleep(0.05)
        return highest


def windows(log: str) -> list[tuple[str, float, float, float]]:
    """Kind, begin and end in s since the epoch, and how long until the new model was ready, of each swap."""
    found, began_s, ready_s = [], 0.0, 0.0
    for line in log.splitlines():
        if not line.startswith("{") or "model_swap_" not in line:
            continue
        event = json.loads(line)
        at_s = datetime.fromisoformat(event["timestamp"]).timestamp()
        if event["event"] == "model_swap_begun":
            began_s = at_s
        elif event["event"] == "model_swap_ready":
            ready_s = event["seconds"]
        elif event["event"] == "model_swap_taken_over":
            found.append(("rollback" if event["rollback"] else "new model", began_s, at_s + AFTER_S, ready_s))
    return found


def sorted_out(taken: list[tuple[int, float]], found: list[tuple[str, float, float, float]]) -> dict[str, Any]:
    """Latencies and the longest gap by what went on."""
    latencies: dict[str, list[float]] = defaultdict(list)
    gaps: dict[str, list[float]] = defaultdict(list)
    arrived_s = sorted(due_ns / 1e9 + ms / 1e3 for due_ns, ms in taken)

    def kind_at(at_s: float) -> str:
        return next((kind for kind, begin, end, _ in found if begin <= at_s <= end), "quiet")

    for due_ns, ms in taken:
        latencies[kind_at(due_ns / 1e9)].append(ms)
    for before_s, after_s in pairwise(arrived_s):
        gaps[kind_at(before_s)].append((after_s - before_s) * 1e3)
    result = {}
    for kind, values in latencies.items():
        p50, p99, worst = np.percentile(values, [50, 99, 100])
        ready = [ready_s for one, _, _, ready_s in found if one == kind]
        result[kind] = {
            **{"events": len(values), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": round(worst, 1)},
            **{"gap_ms": round(max(gaps[kind]), 1), "swaps": len(ready)},
            "ready_s_median": round(float(np.median(ready)), 3) if ready else None,
        }
    return result


def measure(surroundings: Surroundings, *, per_s: float, swaps: int, every_s: float) -> dict[str, Any]:
    """The stream, the swaps beside it, and what was felt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pointer = folder / "pointer.toml"
        point(pointer, another_bundle(folder / "books-0", version="0.0.1", epoch=100, labels=5))
        producer = Producer({"bootstrap.servers": surroundings.bootstrap_servers, "linger.ms": 0})
        sender = Sender(producer, surroundings.topics.input, endless_events(surroundings))
        with Replica(surroundings, MODEL__POINTER=str(pointer)) as replica, Reader(surroundings) as reader:
            replica.wait_ready()
            for _ in range(20):
                one_at_a_time(sender, reader)
            sender.at_rate(per_s, SETTLE_S)
            known = len(reader.taken)
            wait_for(reader, int(20 + per_s * SETTLE_S))
            swapper = Swapper(replica, folder, pointer, swaps, every_s)
            seconds = swaps * (every_s + 4.0)
            known = len(reader.taken)
            sender.at_rate(per_s, seconds)
            swapper.wait()
            wait_for(reader, known + int(per_s * seconds))
            found = windows(replica.log())
            replica.terminate()
        if dead := read_topic(surroundings.bootstrap_servers, surroundings.topics.dead_letter):
            raise SystemExit(f"expected no dead letters, found {len(dead)}")
    return {"per_s": per_s, "felt": sorted_out(reader.taken[known:], found), "memory_mb": swapper.memory_mb}


def show(result: dict[str, Any]) -> None:
    """The table that the README quotes."""
    table = Table(title=f"{result['per_s']:g} listings/s, all through the model; ms from publish to enriched")
    for column in ("", "swaps", "ready s", "events", "p50", "p99", "max", "gap"):
        table.add_column(column)
    for kind, one in sorted(result["felt"].items()):
        row = [one[name] for name in ("swaps", "ready_s_median", "events", "p50_ms", "p99_ms", "max_ms", "gap_ms")]
        table.add_row(kind, *map(str, row))
    console.print(table)
    console.print({name: round(value, 1) for name, value in result["memory_mb"].items()})


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-s", type=float, default=300.0)
    parser.add_argument("--swaps", type=int, default=10, help="new models; each is followed by a rollback")
    parser.add_argument("--every-s", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with own_surroundings("bench:") as surroundings:
        quiet_log = replace(surroundings, overrides={"LOG__LEVEL": "info"})
        result = measure(quiet_log, per_s=arguments.per_s, swaps=arguments.swaps, every_s=arguments.every_s)
    result["machine"] = {
        "cpus": os.cpu_count(),
        "load_average_at_the_end": os.getloadavg(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    result["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
