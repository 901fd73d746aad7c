"""The service against its parts, in one run: `make bench`.

Three contestants over the same 20,000 real listings, on a real Kafka, Redis and registry, interleaved A B C A B C:

    service      `python -m consumer run`, exactly once, from the first answer to the last
    bare model   the same ONNX session, threads and batch size over arrays that are ready
    bare loop    consume, decode, one guarded write a batch, produce, transaction: no features, no model

Times drift on shared machines: what counts are the ratios, medians over the rounds.
"""

import argparse
import io
import json
import os
import platform
import statistics
import struct
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.prediction_store import PredictionStore
from consumer.records import Enriched
from consumer.schema_registry import ParsedSchema
from consumer.task_prediction import Label, TaskPrediction
from model.bundle import Bundle
from model.listing import listing_from_mapping
from tests.benchmarks.listings import real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.infrastructure.topics import create_topics
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, read_topic, wait_until

BATCH = 256
RESULTS = Path(__file__).parent / "results" / "journey.json"
console = Console()


def with_fresh_outputs(surroundings: Surroundings) -> Surroundings:
    """The same input topic, with outputs, a group and a key prefix that nobody used."""
    fresh = create_topics(surroundings.bootstrap_servers, partitions=4)
    topics = replace(fresh, input=surroundings.topics.input)
    prefix = f"bench-{uuid.uuid4().hex[:8]}:"
    return replace(surroundings, topics=topics, redis_prefix=prefix, overrides={"KAFKA__GROUP_ID": prefix})


def run_service(surroundings: Surroundings, events: int) -> dict[str, float]:
    """Events/s between the first and the last answer, and the service's CPU seconds for a million events."""
    surroundings = with_fresh_outputs(surroundings)
    with RunningService(surroundings, BATCH__MAX_RECORDS=str(BATCH), LOG__LEVEL="warning") as service:
        wait_until(lambda: answered(service) >= events, "the service answers all", deadline_s=300)
        cpu_s = service.cpu_seconds()
        memory_mb = service.memory_mb()
        service.terminate()
    answers = read_topic(surroundings.bootstrap_servers, surroundings.topics.output)
    stamps = [answer.timestamp_ms for answer in answers]
    if len(answers) != events or len({answer.source for answer in answers}) != events:
        raise SystemExit(f"expected {events} answers, one an offset; found {len(answers)}: the figure would mean nothing")
    return {
        "events_per_s": events / ((max(stamps) - min(stamps)) / 1000),
        "cpu_s_per_million": cpu_s / events * 1e6,
        "memory_mb": memory_mb,
    }


def answered(service: RunningService) -> float:
    """How many records are done, by the service's own metrics: reading the topic would take the cores it needs."""
    time.sleep(0.3)
    lines = service.get("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("enricher_records_total{"))


def bare_model(listings: list[dict[str, Any]], bundle: Bundle) -> Callable[[], dict[str, float]]:
    """Rows/s of the session alone; features are made once, before the clock runs."""
    extractor = bundle.extractor()
    read = [listing_from_mapping(values, default_version=1) for values in listings]
    batches = [
        extractor.extract(read[start : start + BATCH], [None] * len(read[start : start + BATCH])).as_feed()
        for start in track(range(0, len(read), BATCH), description="features for the bare model", console=console)
    ]
    backend = OnnxRuntimeBackend(bundle.graph_path, threads=1)

    def run() -> dict[str, float]:
        started_s = time.perf_counter()
        for batch in batches:
            backend.infer(batch)
        return {"events_per_s": len(read) / (time.perf_counter() - started_s)}

    return run


def run_loop(surroundings: Surroundings, events: int, answer: bytes) -> dict[str, float]:
    """A plain loop as one would write it by hand, with the same guarantee and the same sizes of what is written."""
    surroundings = with_fresh_outputs(surroundings)
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    consumer = Consumer({"bootstrap.servers": servers, "group.id": surroundings.redis_prefix, "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": servers, "transactional.id": surroundings.redis_prefix, "compression.type": "lz4"})
    store = PredictionStore(surroundings.redis_url, key_prefix=surroundings.redis_prefix, ttl_seconds=None)
    registry = surroundings.registry
    labels = [Label(f"label {m}", 0.5) for m in range(5)]
    prediction = {f"task_{n}": TaskPrediction.classification(labels) for n in range(14)}
    producer.init_transactions(30)
    consumer.subscribe([topics.input])
    done, started_s, opened_s = 0, 0.0, 0.0
    while done < events:
        messages = consumer.consume(BATCH, 0.2)
        if not messages:
            continue
        if not done:
            started_s = opened_s = time.perf_counter()
            producer.begin_transaction()
        states = {}
        for message in messages:
            value = message.value()
            assert value is not None
            schema = registry.schemas([struct.unpack_from(">I", value, 1)[0]]).popitem()[1]
            assert isinstance(schema, ParsedSchema)
            row: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema.schema, None)
            states[row["listing_id"]] = Enriched(row["listing_id"], row["version"], "", prediction, "bare@1", 1)
        store.write(list(states.values()), now_ms=1)
        for message in messages:
            producer.produce(topics.output, answer, message.key(), message.partition() or 0)
        producer.poll(0)
        done += len(messages)
        if time.perf_counter() - opened_s > 0.1 or done >= events:
            producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata())
            producer.commit_transaction(30)
            opened_s = time.perf_counter()
            if done < events:
                producer.begin_transaction()
    seconds = time.perf_counter() - started_s
    consumer.close()
    store.close()
    return {"events_per_s": done / seconds}


def measure(surroundings: Surroundings, listings: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """All rounds, interleaved."""
    events = len(listings)
    model = bare_model(listings, Bundle.load(surroundings.settings().model.bundle))
    publish(surroundings, track(listings, description="publishing", console=console))
    sample = with_fresh_outputs(surroundings)
    with RunningService(sample) as service:
        wait_until(lambda: answered(service) > 0, "a first answer, for its size")
        service.terminate()
    answer = max((one.value or b"" for one in read_topic(sample.bootstrap_servers, sample.topics.output)[:200]), key=len)
    found: dict[str, list[dict[str, float]]] = {"service": [], "bare_model": [], "bare_loop": []}
    for _ in track(range(rounds), description="rounds", console=console):
        found["service"].append(run_service(surroundings, events))
        found["bare_model"].append(model())
        found["bare_loop"].append(run_loop(surroundings, events, answer))
    return summary(found, events)


def summary(found: dict[str, list[dict[str, float]]], events: int) -> dict[str, Any]:
    """Medians and spread, and the two ratios round by round."""

    def ratio(other: str) -> dict[str, float]:
        pairs = zip(found["service"], found[other], strict=True)
        return spread([one["events_per_s"] / two["events_per_s"] for one, two in pairs])

    return {
        "events": events,
        "rounds": len(found["service"]),
        "batch": BATCH,
        "contestants": {name: {key: spread([one[key] for one in runs]) for key in runs[0]} for name, runs in found.items()},
        "ratios": {"service / bare model": ratio("bare_model"), "service / bare loop": ratio("bare_loop")},
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("confluent-kafka", "fastavro", "redis", "onnxruntime", "numpy")},
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


def spread(values: list[float]) -> dict[str, float]:
    """What is said of a figure over the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(result: dict[str, Any]) -> None:
    """The table that the README quotes."""
    table = Table(title=f"{result['events']} listings, {result['rounds']} rounds, medians (min to max)")
    for column in ("", "events/s", "ratio of the service to it"):
        table.add_column(column)
    for name, figures in result["contestants"].items():
        one = figures["events_per_s"]
        ratio = result["ratios"].get(f"service / {name.replace('_', ' ')}")
        shown = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        table.add_row(name.replace("_", " "), f"{one['median']:,.0f} ({one['min']:,.0f} to {one['max']:,.0f})", shown)
    console.print(table)
    service = result["contestants"]["service"]
    console.print(
        f"the service's own CPU: {service['cpu_s_per_million']['median']:.0f} s per million events; "
        f"memory {service['memory_mb']['median']:.0f} MB"
    )


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with own_surroundings("bench:") as surroundings:
        result = measure(surroundings, real_listings(arguments.events), arguments.rounds)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
