"""What metrics, log fields and traces cost a batch, against what the batch itself costs: `python -m tests.benchmarks.watching`.

Batches of 256 real listings through features, model and assembly, as the service does it but without Kafka, Redis and decoding;
and beside them, in turns, each kind of watching alone. Processor time, since machines are shared; what counts are the ratios of
the medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prometheus_client import generate_latest

from consumer.client_statistics import ClientStatistics
from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.prediction import Predictor
from consumer.records import Change, InputRecord, OutputRecord
from consumer.telemetry import Metrics
from consumer.traces import Traces
from model.bundle import Bundle
from model.listing import listing_from_mapping
from tests.benchmarks.listings import ROOT, real_listings

BATCH = 256
PARENT = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    bundle = Bundle.load(ROOT / "model" / "bundles" / "books")
    shares = {task.name: tuple([1 / len(task.labels)] * len(task.labels)) for task in bundle.manifest.tasks if task.labels}
    manifest = bundle.manifest.model_copy(update={"reference": shares})
    predictor = Predictor(bundle, OnnxRuntimeBackend(bundle.graph_path, threads=1), cover_bytes_max=1_000_000)
    metrics = Metrics()
    changes = [_change(row, offset) for offset, row in enumerate(real_listings(BATCH))]
    records = [change.record for change in changes]
    outputs = [OutputRecord("enriched", one.key, b"", one.headers) for one in records]
    prepared, _ = predictor.prepare(changes)
    raw = predictor._backend.infer(prepared.features.as_feed() if prepared.features else {})
    labelled = [(task, raw[task.name]) for task in manifest.tasks if task.labels]
    observe = metrics.drift.watch(manifest)

    def answer() -> None:
        predictor.predict(predictor.prepare(changes)[0])

    def count() -> None:
        metrics.drift.count_listings(changes, {})
        for task, array in labelled:
            observe(task, array)
        metrics.count_lookups(hits=0, misses=BATCH)
        for stage in ("decode", "known", "features", "infer", "store", "produce", "commit"):
            with metrics.stage(stage):  # type: ignore[arg-type]
                pass
        metrics.batch_age_seconds.observe(max(0, time.time() - min(one.timestamp_ms for one in records) / 1000))

    contestants: dict[str, Callable[[], object]] = {
        "features, model, assembly": answer,
        "metrics": count,
        "traces off (log fields only)": _traced(Traces(), records, outputs),
    }
    with suppress(ImportError):
        contestants["traces on, no context in the records"] = _traced(_recording(), records, outputs)
        with_context = [replace(one, headers=PARENT) for one in records]
        kept = [replace(one, headers=PARENT) for one in outputs]
        contestants["traces on, a context in each record"] = _traced(_recording(), with_context, kept)
    contestants["librdkafka statistics, 12 partitions (each 10 s)"] = _statistics(metrics, 12)
    contestants["librdkafka statistics, 100 partitions (each 10 s)"] = _statistics(metrics, 100)
    contestants["/metrics (each scrape)"] = lambda: generate_latest(metrics.registry)
    _report(contestants, rounds)


def _report(contestants: dict[str, Callable[[], object]], rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            started = time.process_time()
            call()
            times[name].append(time.process_time() - started)
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:55} {median * 1e3:8.3f} ms {median / base:8.2%}")


def _change(row: dict[str, Any], offset: int) -> Change:
    listing = listing_from_mapping(row, default_version=1)
    record = InputRecord("listings", offset % 4, offset, listing.listing_id.encode(), b"", (), time.time_ns() // 1_000_000)
    return Change(record, listing.listing_id, listing.version, listing)


def _recording() -> Traces:
    """Spans that are made and dropped: sending them is another thread's work."""
    from opentelemetry.sdk.trace import TracerProvider

    return Traces(TracerProvider(shutdown_on_exit=False))


def _traced(traces: Traces, records: list[InputRecord], outputs: list[OutputRecord]) -> Callable[[], None]:
    def batch() -> None:
        trace = traces.begin(records)
        for _ in range(3):  # prepare, predict, finish
            trace.run(lambda: None)
        trace.onto(outputs)
        trace.end()

    return batch


def _statistics(metrics: Metrics, partitions: int) -> Callable[[], None]:
    """Statistics of the size and shape that the client gives, from STATISTICS.md: a partition has some 40 fields."""
    one = {"fetchq_cnt": 20, "fetchq_size": 3_000, **{f"field_{number}_of_a_partition": 123_456_789 for number in range(38)}}
    broker = {"nodeid": 1, "state": "UP", "rtt": {"p99": 900}, "txerrs": 0, "rxerrs": 0, "req_timeouts": 0}
    told = {
        "name": "enricher#consumer-1",
        "brokers": {f"kafka-{number}:9092/{number}": broker for number in range(3)},
        "topics": {"listings": {"partitions": {str(number): one for number in range(partitions)}}},
    }
    text, statistics_of = json.dumps(told), ClientStatistics("consumer", metrics)
    return lambda: statistics_of(text)


if __name__ == "__main__":
    main()
