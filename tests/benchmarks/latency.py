"""How long a listing waits for its attributes, from publish to enriched, against the load.

Events are sent on a fixed schedule, and each one's time runs from the moment at which it *should* have been sent, so that a
service that falls behind cannot hide it by slowing its own load (coordinated omission). The moment travels in a header, which
the service carries on; the reader is `read_committed`. Loads are shares of the most that the service did in the same run.

    single    one listing at a time: the next is sent when the former's answer was read
    10 %, …   that share of the maximum, evenly spaced, for `--seconds` each
"""

import argparse
import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from consumer.codec import encode
from consumer.schema_registry import ParsedSchema
from consumer.schemas import LISTING
from model.listing import listing_from_mapping
from tests.benchmarks.contestants import with_fresh_outputs
from tests.benchmarks.listings import real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.infrastructure.topics import create_topics
from tests.journey.running import RunningService, Surroundings, read_topic

RESULTS = Path(__file__).parent / "results" / "latency.json"
DUE_HEADER = "due_ns"
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1)
LINGER_MS, TRANSACTION_MS = 10, 100
SETTLE_S = 1.0  # of each load, left out: queues fill
console = Console()


@dataclass
class Reader:
    """Reads answers on a thread of its own and notes how long each took: ms, in the order of arrival."""

    surroundings: Surroundings
    taken: list[tuple[int, float]] = field(default_factory=list)  # due ns, ms
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Reader":
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.surroundings.bootstrap_servers,
                "group.id": f"reader-{self.surroundings.redis_prefix}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
            }
        )
        assigned = threading.Event()
        self._consumer.subscribe([self.surroundings.topics.output], on_assign=lambda *_: assigned.set())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assigned.wait(60)
        return self

    def __exit__(self, *about: object) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(500, 0.005):
                now_ns = time.time_ns()
                due_ns = int(dict(message.headers() or ())[DUE_HEADER] or 0)
                self.taken.append((due_ns, (now_ns - due_ns) / 1e6))


@dataclass
class Sender:
    """Sends ready events, each with the moment at which it is due."""

    producer: Producer
    topic: str
    events: Iterator[tuple[bytes, bytes]]

    def send(self, due_ns: int) -> None:
        key, value = next(self.events)
        self.producer.produce(self.topic, value, key, headers=[(DUE_HEADER, str(due_ns).encode())])
        self.producer.poll(0)

    def at_rate(self, per_s: float, seconds: float) -> tuple[int, int]:
        """Evenly spaced. Returns the first and the last moment that count."""
        started_ns = time.time_ns()
        for number in range(int(per_s * seconds)):
            due_ns = started_ns + int(number * 1e9 / per_s)
            if (ahead_s := (due_ns - time.time_ns()) / 1e9) > 0.001:
                time.sleep(ahead_s)
            self.send(due_ns)
        self.producer.flush(30)
        return started_ns + int(SETTLE_S * 1e9), started_ns + int(seconds * 1e9)


def endless_events(surroundings: Surroundings) -> Iterator[tuple[bytes, bytes]]:
    """Key and value. Each pass is a later version of every listing with another title, so that the model always runs."""
    registry = surroundings.registry
    schema_id = registry.register(f"{surroundings.topics.input}-value", LISTING)
    schema = registry.schemas([schema_id])[schema_id]
    assert isinstance(schema, ParsedSchema)
    for version, row in enumerate(cycle(real_listings(4_000)), start=2):
        listing = listing_from_mapping({**row, "version": version, "title": f"{row['title']} {version}"}, default_version=version)
        yield listing.listing_id.encode(), encode({**asdict(listing), "authors": list(listing.authors)}, schema)


@contextmanager
def running(surroundings: Surroundings, guarantee: str, events: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[Sender, Reader]]:
    """The service with one guarantee, warm, with a sender and a reader."""
    fresh = with_fresh_outputs(surroundings)
    topics = create_topics(fresh.bootstrap_servers, partitions=4)
    fresh = Surroundings(
        fresh.bootstrap_servers, fresh.registry_url, fresh.redis_url, fresh.redis_prefix, topics, dict(fresh.overrides)
    )
    overrides = {
        "DELIVERY__GUARANTEE": guarantee,
        "DELIVERY__TRANSACTION_MS": str(TRANSACTION_MS),
        "BATCH__MAX_LINGER_MS": str(LINGER_MS),
        "LOG__LEVEL": "warning",
    }
    producer = Producer({"bootstrap.servers": fresh.bootstrap_servers, "linger.ms": 0, "compression.type": "lz4"})
    with RunningService(fresh, **overrides) as service, Reader(fresh) as reader:
        service.wait_ready()
        sender = Sender(producer, topics.input, events)
        for _ in range(20):
            one_at_a_time(sender, reader)
        yield sender, reader
        service.terminate()
    if dead := read_topic(fresh.bootstrap_servers, topics.dead_letter):
        raise SystemExit(f"expected no dead letters, found {len(dead)}: {dead[0]}")


def one_at_a_time(sender: Sender, reader: Reader) -> float:
    """ms of one listing that has the service for itself."""
    known = len(reader.taken)
    sender.send(time.time_ns())
    sender.producer.flush(10)
    deadline_s = time.monotonic() + 30
    while len(reader.taken) == known:
        if time.monotonic() > deadline_s:
            raise SystemExit("no answer within 30 s")
        time.sleep(0.0005)
    return reader.taken[-1][1]


def maximum(sender: Sender, reader: Reader, count: int) -> float:
    """events/s over a backlog of `count`."""
    known = len(reader.taken)
    for key, value in list(islice(sender.events, count)):
        sender.producer.produce(sender.topic, value, key, headers=[(DUE_HEADER, str(time.time_ns()).encode())])
        sender.producer.poll(0)
    began_s = time.monotonic()
    sender.producer.flush(30)
    wait_for(reader, known + count)
    return count / (time.monotonic() - began_s)


def wait_for(reader: Reader, count: int) -> None:
    """Returns when so many answers were read."""
    deadline_s = time.monotonic() + 60
    while len(reader.taken) < count:
        if time.monotonic() > deadline_s:
            raise SystemExit(f"expected {count} answers, found {len(reader.taken)} after 60 s")
        time.sleep(0.01)


def percentiles(taken_ms: list[float]) -> dict[str, float]:
    """p50, p99 and the worst, in ms, with their number."""
    p50, p99, worst = np.percentile(taken_ms, [50, 99, 100])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(worst), "events": len(taken_ms)}


def measure(surroundings: Surroundings, guarantee: str, seconds: float) -> dict[str, Any]:
    """One guarantee's maximum and its latencies over the loads."""
    with running(surroundings, guarantee, endless_events(surroundings)) as (sender, reader):
        most = maximum(sender, reader, 20_000)
        loads = {"single": percentiles([one_at_a_time(sender, reader) for _ in range(100)])}
        for share in track(SHARES, description=guarantee, console=console):
            known = len(reader.taken)
            first_ns, last_ns = sender.at_rate(share * most, seconds)
            wait_for(reader, known + int(share * most * seconds))
            loads[f"{share:.0%}"] = percentiles([ms for due_ns, ms in reader.taken[known:] if first_ns <= due_ns <= last_ns])
    return {"maximum_events_per_s": most, "loads": loads}


def show(result: dict[str, Any]) -> None:
    """The table that the README quotes."""
    table = Table(title=f"ms from publish to enriched; linger {LINGER_MS} ms, transactions {TRANSACTION_MS} ms")
    for column in ("load", *(f"{name}: {part}" for name in result["guarantees"] for part in ("p50", "p99"))):
        table.add_column(column)
    names = list(result["guarantees"])
    for load in result["guarantees"][names[0]]["loads"]:
        found = [result["guarantees"][name]["loads"][load] for name in names]
        table.add_row(load, *(f"{one[part]:.1f}" for one in found for part in ("p50_ms", "p99_ms")))
    console.print(table)
    for name in names:
        console.print(f"{name}: at most {result['guarantees'][name]['maximum_events_per_s']:,.0f} events/s")


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each load")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with own_surroundings("bench:") as surroundings:
        found = {name: measure(surroundings, name, arguments.seconds) for name in ("at_least_once", "exactly_once")}
    result = {
        "linger_ms": LINGER_MS,
        "transaction_ms": TRANSACTION_MS,
        "guarantees": found,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
