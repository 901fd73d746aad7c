"""What runs in the benchmarks: the service in several forms, the bare model, a bare client loop. Each run is verified."""

import io
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import fastavro
from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.progress import track

from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.prediction_store import PredictionStore
from consumer.predictions import Predictions
from consumer.records import Enriched
from consumer.schemas import ParsedSchema
from consumer.task_prediction import Label, TaskPrediction
from model.bundle import Bundle
from model.cover import decode_cover
from model.listing import listing_from_mapping
from tests.infrastructure.topics import create_topics
from tests.journey.running import RunningService, Surroundings, read_topic, wait_until

BATCH = 256
PARTITIONS = 4
Figures = dict[str, float]
console = Console()


def with_fresh_outputs(surroundings: Surroundings, *, partitions: int = PARTITIONS) -> Surroundings:
    """The same input topic, with outputs, a group and a key prefix that nobody used."""
    fresh = create_topics(surroundings.bootstrap_servers, partitions=partitions)
    topics = replace(fresh, input=surroundings.topics.input)
    prefix = f"bench-{uuid.uuid4().hex[:8]}:"
    return replace(surroundings, topics=topics, redis_prefix=prefix, overrides={"KAFKA__GROUP_ID": prefix})


def run_service(surroundings: Surroundings, events: int, *, replicas: int = 1, **overrides: str) -> Figures:
    """The service over what stands in the input topic.

    Args:
        surroundings: with outputs of its own (`with_fresh_outputs`).
        overrides: settings, named like `DELIVERY__GUARANTEE`.
    Returns:
        events_per_s: between the first and the last answer.
        start_s: from the process's start to its first answer, a backlog at hand.
        cpu_s_per_million: user and system time of all replicas for a million events, once all are at work.
        memory_mb: resident, of the largest replica.
        reused: answers that took no model.
    """
    chosen = {"BATCH__MAX_RECORDS": str(BATCH), "LOG__LEVEL": "warning", **overrides}
    with ExitStack() as running:
        started_ms = time.time() * 1000
        services = [running.enter_context(RunningService(surroundings, **chosen)) for _ in range(replicas)]
        begun = _when(services, lambda done: all(done) or sum(done) >= events / 2)
        ended = _when(services, lambda done: sum(done) >= events)
        memory_mb = max(service.memory_mb() for service in services)
        reused = sum(answered(service, outcome="reused") for service in services)
        for service in services:
            service.terminate()
    answers = read_topic(surroundings.bootstrap_servers, surroundings.topics.output)
    stamps = [answer.timestamp_ms for answer in answers]
    if len(answers) != events or len({answer.source for answer in answers}) != events:
        raise SystemExit(f"expected {events} answers, one an offset; found {len(answers)}: the figure would mean nothing")
    return {
        "events_per_s": events / ((max(stamps) - min(stamps)) / 1000),
        "start_s": (min(stamps) - started_ms) / 1000,
        "cpu_s_per_million": (ended[1] - begun[1]) / max(1, ended[0] - begun[0]) * 1e6,
        "memory_mb": memory_mb,
        "reused": reused,
    }


def _when(services: Sequence[RunningService], holds: Callable[[list[float]], bool]) -> tuple[float, float]:
    """Records done and CPU seconds of all, as soon as it holds for the records that each has done."""
    found: list[tuple[float, float]] = []

    def looked() -> bool:
        time.sleep(0.3)  # each look at the metrics costs the service 3 ms
        cpu_s = sum(service.cpu_seconds() for service in services)
        done = [answered(service) for service in services]
        found.append((sum(done), cpu_s))
        return holds(done)

    wait_until(looked, "the service answers", deadline_s=300)
    return found[-1]


def answered(service: RunningService, *, outcome: str = "") -> float:
    """How many records are done, by the service's own metrics: reading the topic would take the cores it needs."""
    lines = service.get("/metrics")[1].splitlines()
    wanted = f'enricher_records_total{{outcome="{outcome}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))


def newer(listing: Mapping[str, Any]) -> dict[str, Any]:
    """The next version of a listing, in which nothing that the model sees has changed."""
    return {**listing, "version": listing["version"] + 1, "price": (listing.get("price") or 0) + 1}


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


def decoding(covers: Sequence[bytes], bundle: Bundle) -> dict[str, float]:
    """What decoding these covers to the model's size costs by itself."""
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    for cover in covers:
        decode_cover(cover, bundle.manifest.features)
    million = 1e6 / len(covers)
    return {
        "events_per_s": len(covers) / (time.perf_counter() - begun_s),
        "cpu_s_per_million": (time.process_time() - cpu_s) * million,
    }


def run_loop(surroundings: Surroundings, events: int, answer: bytes) -> dict[str, float]:
    """A plain loop as one would write it by hand, with the same guarantee and the same sizes of what is written."""
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    consumer = Consumer({"bootstrap.servers": servers, "group.id": surroundings.redis_prefix, "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": servers, "transactional.id": surroundings.redis_prefix, "compression.type": "lz4"})
    store = PredictionStore(surroundings.redis_url, key_prefix=surroundings.redis_prefix, ttl_seconds=None)
    registry = surroundings.registry
    labels = [Label(f"label {m}", 0.5) for m in range(5)]
    prediction = Predictions.of({f"task_{n}": TaskPrediction.classification(labels) for n in range(14)})
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
