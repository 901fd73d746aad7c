"""A batch of 256 listings written and looked up: one Redis server against a cluster of three primaries, interleaved.

Prints the median milliseconds a batch, and the cluster's as a multiple of the one server's. `python -m tests.benchmarks.store`
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from consumer.batch_encoder import BatchEncoder, Said
from consumer.prediction_store import PredictionStore
from consumer.records import Enriched
from model.bundle import TaskSpec
from tests.infrastructure.prepare import choose_without_changes
from tests.infrastructure.redis_nodes import RedisCluster
from tests.infrastructure.start import new_redis, started

ROUNDS, BATCH, TASKS = 200, 256, 17
LABELS = tuple(f"label {number}" for number in range(5))
ENCODER = BatchEncoder([TaskSpec(name=f"task_{number}", kind="single", labels=LABELS) for number in range(TASKS)])


def a_batch() -> list[Enriched]:
    """As large as the shipped bundle's answers: 17 tasks of up to five labels."""
    said = Said(np.full((1, TASKS), 5), np.tile(np.arange(5), TASKS), np.full(5 * TASKS, 2000), np.zeros((1, 0, 3), np.float32))
    predictions = ENCODER.encode(said)[0]
    return [Enriched(f"bd-{number}", 1, "c0ffee", predictions, "books@1.0.0", 1) for number in range(BATCH)]


def took_ms(call: Callable[[PredictionStore], object], store: PredictionStore) -> float:
    """Wall clock."""
    begun_s = time.perf_counter()
    call(store)
    return 1000 * (time.perf_counter() - begun_s)


def main() -> None:
    """Starts its own servers."""
    choice = choose_without_changes()
    server, cluster = new_redis(choice), RedisCluster(choice)
    try:
        started(server)
        stores = [PredictionStore(url, key_prefix="listing:", ttl_seconds=None) for url in (server.url, cluster.url)]
        batch, hashes = a_batch(), {f"bd-{number}": "c0ffee" for number in range(BATCH)}
        calls: dict[str, Callable[[PredictionStore], object]] = {
            "write": lambda store: store.write(batch, now_ms=1),
            "unchanged": lambda store: store.unchanged(hashes, model_epoch=1, recall=ENCODER.recall),
        }
        for name, call in calls.items():
            times = [[took_ms(call, store) for store in stores] for _ in range(ROUNDS)]
            one, many = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name}: one server {one:.1f} ms, cluster {many:.1f} ms a batch of {BATCH}: {many / one:.2f} times")
        for store in stores:
            store.close()
    finally:
        server.remove()
        cluster.remove()


if __name__ == "__main__":
    main()
