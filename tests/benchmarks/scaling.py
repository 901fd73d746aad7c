"""How the cost of an event grows with batch, partitions, event size and number of tasks: `make bench-scaling`.

One service, exactly once, one point after another over the same listings. What counts is CPU time an event: throughput on a
machine that broker, store and service share says little of any of them.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks.bundles import bundle_of
from tests.benchmarks.contestants import Figures, console, run_service, with_fresh_outputs
from tests.benchmarks.listings import real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.infrastructure.topics import create_topics
from tests.journey.publishing import publish
from tests.journey.running import Surroundings

RESULTS = Path(__file__).parent / "results" / "scaling.json"
BATCHES = (1, 4, 16, 64, 256, 1024)
PARTITIONS = (1, 4, 16, 32)
EVENT_KB = (0.5, 2, 8, 32, 64)
TASKS = (1, 5, 14, 28, 50)


def measure(surroundings: Surroundings, listings: list[dict[str, Any]], folder: Path) -> dict[str, list[dict[str, float]]]:
    """Every point once: figures by what varies."""
    events = len(listings)
    publish(surroundings, listings)
    found: dict[str, list[dict[str, float]]] = {"batch": [], "partitions": [], "event KB": [], "tasks": []}

    def note(what: str, value: float, figures: Figures) -> None:
        found[what].append({"value": value, **figures})
        console.print(
            f"{what} {value:g}: {figures['events_per_s']:,.0f} events/s, {figures['cpu_s_per_million']:.0f} CPU s a million"
        )

    for batch in BATCHES:
        few = with_fresh_outputs(surroundings)
        note("batch", batch, run_service(few, events, BATCH__MAX_RECORDS=str(batch)))
    for partitions in PARTITIONS:
        there = _published(surroundings, listings, partitions=partitions)
        note("partitions", partitions, run_service(with_fresh_outputs(there, partitions=partitions), events))
    free = bundle_of("free", folder)
    for size_kb in EVENT_KB:
        there = _published(surroundings, [_padded(one, size_kb) for one in listings], partitions=4)
        note("event KB", size_kb, run_service(with_fresh_outputs(there), events, MODEL__BUNDLE=str(free.path)))
    for tasks in TASKS:
        bundle = bundle_of("small", folder / str(tasks), tasks=tasks)
        note("tasks", tasks, run_service(with_fresh_outputs(surroundings), events, MODEL__BUNDLE=str(bundle.path)))
    return found


def _published(surroundings: Surroundings, listings: list[dict[str, Any]], *, partitions: int) -> Surroundings:
    there = replace(surroundings, topics=create_topics(surroundings.bootstrap_servers, partitions=partitions))
    publish(there, listings)
    return there


def _padded(listing: dict[str, Any], size_kb: float) -> dict[str, Any]:
    """The listing with its description repeated, or cut, to about that many bytes in all."""
    text = listing.get("description") or listing["title"] or "-"
    room = max(0, int(size_kb * 1024) - 200)
    return {**listing, "description": (text * (room // len(text.encode()) + 1)).encode()[:room].decode(errors="ignore")}


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """The table that the README quotes."""
    for what, points in found.items():
        table = Table(title=what)
        for column in (what, "events/s", "CPU µs an event", "MB"):
            table.add_column(column)
        for one in points:
            row = (
                f"{one['value']:g}",
                f"{one['events_per_s']:,.0f}",
                f"{one['cpu_s_per_million']:.0f}",
                f"{one['memory_mb']:.0f}",
            )
            table.add_row(*row)
        console.print(table)


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with own_surroundings("scaling:") as surroundings, tempfile.TemporaryDirectory() as folder:
        found = measure(surroundings, real_listings(arguments.events), Path(folder))
    about = {
        "events": arguments.events,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    arguments.out.write_text(json.dumps({**about, "points": found}, indent=2) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
