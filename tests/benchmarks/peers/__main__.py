"""The service against what people would otherwise use, in one run: `make bench-peers`.

The same listings, broker, store, ONNX session and threads, batches of at most 256, a commit each 100 ms; interleaved
A B C A B C. The others run at least once, without transactions; the service runs exactly once and at least once.
After each run the enriched records and the store's keys are counted, and a checksum over every best label must be the
same for all. What counts are the ratios.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import redis
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.progress import track
from rich.table import Table

from consumer.schemas import ENRICHED_LISTING, LISTING
from model.bundle import Bundle
from tests.benchmarks.bundles import ModelSize, bundle_of
from tests.benchmarks.contestants import BATCH, answered, with_fresh_outputs
from tests.benchmarks.journey import spread
from tests.benchmarks.listings import real_listings
from tests.benchmarks.peers.environment import PEERS, Peer, RunningPeer, peers_python, versions
from tests.benchmarks.peers.job import Plan
from tests.benchmarks.surroundings import own_surroundings
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, decode_enriched, read_topic, wait_until

COMMIT_MS = 100
PARTITIONS = 4
DEADLINE_S = 180.0
GUARANTEES = ("exactly_once", "at_least_once")
JOBS = ("ordinary", "ours")
RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.json"
console = Console()


def run_service(surroundings: Surroundings, bundle: Bundle, events: int, guarantee: str) -> dict[str, float | str]:
    """One run of the service, verified."""
    surroundings = with_fresh_outputs(surroundings)
    overrides = {
        "MODEL__BUNDLE": str(bundle.path),
        "BATCH__MAX_RECORDS": str(BATCH),
        "DELIVERY__GUARANTEE": guarantee,
        "DELIVERY__TRANSACTION_MS": str(COMMIT_MS),
        "LOG__LEVEL": "warning",
    }

    def done() -> bool:
        time.sleep(0.3)
        return answered(service) >= events

    with RunningService(surroundings, **overrides) as service:
        wait_until(done, f"the service, {guarantee}", deadline_s=DEADLINE_S)
        used = {"cpu_s": service.cpu_seconds(), "memory_mb": service.memory_mb()}
        service.terminate()
    return figures(surroundings, events) | used


def run_peer(
    peer: Peer, surroundings: Surroundings, bundle: Bundle, events: int, *, job: str, python: Path
) -> dict[str, float | str]:
    """One run of another runner, verified."""
    surroundings = with_fresh_outputs(surroundings)
    registry, topics = surroundings.registry, surroundings.topics
    plan = Plan(
        bootstrap_servers=surroundings.bootstrap_servers,
        input_topic=topics.input,
        output_topic=topics.output,
        group=surroundings.redis_prefix,
        batch=BATCH,
        commit_ms=COMMIT_MS,
        job=job,
        bundle=str(bundle.path),
        redis_url=surroundings.redis_url,
        redis_prefix=surroundings.redis_prefix,
        input_schema=json.loads(LISTING),
        input_schema_id=registry.register(f"{topics.input}-value", LISTING),
        output_schema=json.loads(ENRICHED_LISTING),
        output_schema_id=registry.register(f"{topics.output}-value", ENRICHED_LISTING),
    )

    def written() -> int:
        time.sleep(0.3)
        process.check()
        return records_in(surroundings)

    with RunningPeer(peer, plan, python=python) as process:
        wait_until(lambda: written() >= events, peer.name, deadline_s=DEADLINE_S)
        used = {"cpu_s": process.cpu_seconds(), "memory_mb": process.memory_mb()}
    return figures(surroundings, events) | used


def records_in(surroundings: Surroundings) -> int:
    """How many records the output topic has: its end offsets, which cost the broker next to nothing."""
    consumer = Consumer({"bootstrap.servers": surroundings.bootstrap_servers, "group.id": "a reader that never commits"})
    try:
        ends = [
            consumer.get_watermark_offsets(TopicPartition(surroundings.topics.output, number)) for number in range(PARTITIONS)
        ]
        return sum(end[1] for end in ends if end)
    finally:
        consumer.close()


def figures(surroundings: Surroundings, events: int) -> dict[str, float | str]:
    """Events/s between the first and the last answer, and the checksum. Raises: SystemExit: something is missing or doubled."""
    answers = read_topic(surroundings.bootstrap_servers, surroundings.topics.output)
    sources = {one["listing_id"]: one for one in decode_enriched(surroundings, answers) if one is not None}
    with redis.Redis.from_url(surroundings.redis_url) as store:
        keys = sum(1 for _ in store.scan_iter(f"{surroundings.redis_prefix}*", count=10_000))
    if (len(answers), len(sources), keys) != (events, events, events):
        raise SystemExit(f"expected {events} answers, listings and keys; found {len(answers)}, {len(sources)}, {keys}")
    stamps = [answer.timestamp_ms for answer in answers]
    lines = sorted(f"{key} {best_labels(event['predictions'])}" for key, event in sources.items())
    checksum = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return {"events_per_s": events / ((max(stamps) - min(stamps)) / 1000), "checksum": checksum}


def best_labels(predictions: dict[str, Any]) -> str:
    """The first label of each task: what two ways of summing floats agree on."""
    return " ".join(f"{task}={one['labels'][0]['label'] if one['labels'] else ''}" for task, one in sorted(predictions.items()))


def measure(
    surroundings: Surroundings, bundle: Bundle, events: int, rounds: int, jobs: list[str], peers: list[Peer], python: Path
) -> dict[str, Any]:
    """All rounds with one model."""
    contestants: dict[str, Callable[[], dict[str, float | str]]] = {}
    for guarantee in GUARANTEES:
        contestants[f"service {guarantee}"] = lambda guarantee=guarantee: run_service(surroundings, bundle, events, guarantee)
    for peer in peers:
        for job in jobs:
            contestants[f"{peer.name}, {job} job"] = lambda peer=peer, job=job: run_peer(
                peer, surroundings, bundle, events, job=job, python=python
            )
    found: dict[str, list[dict[str, float | str]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            figures = run()
            found[name].append(figures)
            console.print(f"{bundle.manifest.name} round {number + 1}/{rounds}: {name}: {figures['events_per_s']:,.0f} events/s")
    checksums = {str(run["checksum"]) for runs in found.values() for run in runs}
    if len(checksums) != 1:
        raise SystemExit(f"expected the same best labels of all, found {len(checksums)} different checksums: {found}")
    return summary(found, events, jobs)


def summary(found: dict[str, list[dict[str, Any]]], events: int, jobs: list[str]) -> dict[str, Any]:
    """Medians and spread; the ratios round by round, against the best of the others in that round."""
    keys = ("events_per_s", "cpu_s", "memory_mb")
    ratios = {}
    for guarantee in GUARANTEES:
        service = [run["events_per_s"] for run in found[f"service {guarantee}"]]
        for job in jobs:
            others = [[run["events_per_s"] for run in runs] for name, runs in found.items() if name.endswith(f"{job} job")]
            best = [max(values) for values in zip(*others, strict=True)]
            ratios[f"service {guarantee} / best other, {job} job"] = spread(
                [one / two for one, two in zip(service, best, strict=True)]
            )
    both = zip(*(found[f"service {guarantee}"] for guarantee in GUARANTEES), strict=True)
    ratios["exactly_once / at_least_once"] = spread([one["events_per_s"] / two["events_per_s"] for one, two in both])
    return {
        "events": events,
        "contestants": {name: {key: spread([run[key] for run in runs]) for key in keys} for name, runs in found.items()},
        "ratios": ratios,
        "checksum": next(iter(found.values()))[0]["checksum"],
    }


def show(size: str, result: dict[str, Any]) -> None:
    """The table that the README quotes."""
    table = Table(title=f"{size} model, {result['events']} listings")
    for column in ("", "events/s, median (min to max)", "CPU s, start included", "MB"):
        table.add_column(column)
    for name, one in result["contestants"].items():
        rate = one["events_per_s"]
        shown = f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})"
        table.add_row(name, shown, f"{one['cpu_s']['median']:.1f}", f"{one['memory_mb']['median']:.0f}")
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", action="append", choices=get_args(ModelSize), help="default: small and shipped")
    parser.add_argument("--job", action="append", choices=JOBS, help="the others' work on a batch; default: both")
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    python = peers_python()
    peers = [peer for peer in PEERS if peer.name in (arguments.peer or [peer.name])]
    results: dict[str, Any] = {}
    with own_surroundings("peers:", partitions=PARTITIONS) as surroundings, tempfile.TemporaryDirectory() as folder:
        listings = real_listings(arguments.events)
        publish(surroundings, track(listings, description="publishing", console=console))
        for size in arguments.model or ["small", "shipped"]:
            bundle = bundle_of(size, Path(folder))
            results[size] = measure(
                surroundings, bundle, len(listings), arguments.rounds, arguments.job or list(JOBS), peers, python
            )
            show(size, results[size])
    about = {
        "rounds": arguments.rounds,
        "batch": BATCH,
        "commit_ms": COMMIT_MS,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": versions(python),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    arguments.out.write_text(json.dumps({**about, "models": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
