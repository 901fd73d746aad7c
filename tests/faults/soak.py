"""A long day in a short time: `python -m tests.faults.soak --events 1000000`.

One service on real servers, under a stream that always has some lag. 50,000 listings change again and again; one change in five
changes what the model sees, the others only the price. While it runs, the service's memory, file descriptors and threads and
Redis's connections are looked at; at the end every input offset must have exactly one answer.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random
from typing import Any

import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.progress import Progress

from consumer.codec import SOURCE_HEADER, encode
from consumer.schema_registry import ParsedSchema
from consumer.schemas import LISTING
from tests.benchmarks.contestants import answered
from tests.benchmarks.listings import real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.faults.replicas import Replica
from tests.journey.running import Surroundings
from tests.model.fields import listing_fields

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "soak.json"
PARTITIONS = 4
LISTINGS = 50_000
CHANGED_SHARE = 0.2
LAG_MAX = 20_000
WARM_UP_SHARE = 0.1
SAMPLE_S = 2.0
MEMORY_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """How the service stood at one moment."""

    seconds: float
    events: int
    memory_mb: float
    descriptors: int
    threads: int
    redis_connections: int


def events(schema: ParsedSchema, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values without an end."""
    chance, version = Random(seed), 1
    rows = [listing_fields(row) for row in real_listings(min(LISTINGS, 20_000))]
    rows = [{**rows[number % len(rows)], "listing_id": f"soak-{number}"} for number in range(LISTINGS)]
    while True:
        row = rows[chance.randrange(LISTINGS)]
        version += 1
        row["version"], row["price"] = version, round(chance.uniform(3, 60), 2)
        if chance.random() < CHANGED_SHARE:
            row["title"] = f"{str(row['title'] or '').partition(' | ')[0]} | {version}"
        yield row["listing_id"].encode(), encode(row, schema)


def look(service: Replica, store: "redis.Redis[Any]", began_s: float, done: int) -> Sample:
    """One sample."""
    process = Path(f"/proc/{service.pid}")
    return Sample(
        seconds=round(time.monotonic() - began_s, 1),
        events=done,
        memory_mb=round(service.memory_mb(), 1),
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
        threads=sum(1 for _ in (process / "task").iterdir()),
        redis_connections=int(store.info("clients")["connected_clients"]),
    )


def judge(samples: list[Sample], total: int) -> list[str]:
    """What grew after the warm-up. Threads and connections come and go: a leak is what raises the least of a quarter."""
    warm = [one for one in samples if one.events >= WARM_UP_SHARE * total]
    middle = sorted(one.memory_mb for one in warm)[len(warm) // 2]
    complaints = [
        f"memory: {one.memory_mb} MB after {one.events} events, expected {middle} MB ± {MEMORY_TOLERANCE:.0%}"
        for one in warm
        if abs(one.memory_mb - middle) > MEMORY_TOLERANCE * middle
    ]
    quarter = max(1, len(warm) // 4)
    for name in ("descriptors", "threads", "redis_connections"):
        early, late = (min(getattr(one, name) for one in part) for part in (warm[:quarter], warm[-quarter:]))
        if late > early:
            complaints.append(f"{name}: grew from {early} to {late}")
    return complaints


def count_answers(surroundings: Surroundings, sent: int) -> list[str]:
    """Whether each input offset has one answer. Streams: a million records do not fit comfortably into memory."""
    consumer = Consumer(
        {
            "bootstrap.servers": surroundings.bootstrap_servers,
            "group.id": "soak-reader",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    topic = surroundings.topics.output
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    seen: set[bytes] = set()
    doubled, ended = 0, 0
    while ended < PARTITIONS:
        for message in consumer.consume(1_000, 1.0):
            if message.error() is not None:
                ended += 1
                continue
            source = dict(message.headers() or ())[SOURCE_HEADER]
            doubled += source in seen
            seen.add(source)
    consumer.close()
    asked = _input_offsets(surroundings)
    complaints = [f"{doubled} offsets were answered twice"] if doubled else []
    if lost := len(asked - seen):
        complaints.append(f"{lost} offsets of {len(asked)} were not answered")
    if invented := len(seen - asked):
        complaints.append(f"{invented} offsets were answered that were never asked")
    if len(asked) != sent:
        complaints.append(f"expected {sent} input records, found {len(asked)}")
    return complaints


def _input_offsets(surroundings: Surroundings) -> set[bytes]:
    """Topic, partition and offset of each input record, as answers name them. Nothing is deleted, so offsets have no gaps."""
    topic, client = surroundings.topics.input, surroundings.bystander
    ends = [client.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1] for number in range(PARTITIONS)]
    return {f"{topic}/{number}/{offset}".encode() for number, end in enumerate(ends) for offset in range(end)}


def run(surroundings: Surroundings, total: int, seed: int) -> dict[str, Any]:
    """Publishes, watches, counts."""
    schema_id = surroundings.registry.register(f"{surroundings.topics.input}-value", LISTING)
    schema = surroundings.registry.schemas([schema_id])[schema_id]
    assert isinstance(schema, ParsedSchema)
    producer = Producer({"bootstrap.servers": surroundings.bootstrap_servers, "compression.type": "lz4", "linger.ms": 20})
    store: redis.Redis[Any] = redis.Redis.from_url(surroundings.redis_url)
    samples: list[Sample] = []
    sent, done, source = 0, 0, events(schema, seed)
    with Replica(surroundings, LOG__LEVEL="warning") as service, Progress() as progress:
        service.wait_ready()
        bar = progress.add_task("events", total=total)
        began_s = time.monotonic()
        while done < total:
            while sent < min(total, done + LAG_MAX):
                key, value = next(source)
                producer.produce(surroundings.topics.input, value, key)
                producer.poll(0)
                sent += 1
            producer.flush(30)
            done = int(answered(service))
            progress.update(bar, completed=done)
            if not samples or time.monotonic() - began_s - samples[-1].seconds > SAMPLE_S:
                samples.append(look(service, store, began_s, done))
        seconds = time.monotonic() - began_s
        assert service.terminate() == 0
    complaints = judge(samples, total) + count_answers(surroundings, total)
    warm = [one for one in samples if one.events >= WARM_UP_SHARE * total]
    return {
        "events": total,
        "seed": seed,
        "seconds": round(seconds, 1),
        "events_per_s": round(total / seconds),
        "memory_mb": {"min": min(one.memory_mb for one in warm), "max": max(one.memory_mb for one in warm)},
        "complaints": complaints,
        "samples": [astuple(one) for one in samples],
    }


def main() -> None:
    """Starts real servers of its own, runs, writes the figures and ends with 1 where something grew or was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with own_surroundings("soak:", partitions=PARTITIONS) as surroundings:
        result = run(surroundings, arguments.events, arguments.seed)
    arguments.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=2))
    raise SystemExit(1 if result["complaints"] else 0)


if __name__ == "__main__":
    main()
