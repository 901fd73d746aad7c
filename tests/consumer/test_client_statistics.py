"""What a Kafka client says of itself, as metrics."""

import json
from typing import Any

from consumer.client_statistics import ClientStatistics
from consumer.telemetry import Metrics


def a_broker(node: int, *, state: str = "UP", p99_us: int = 0, errors: int = 0) -> dict[str, Any]:
    return {"nodeid": node, "state": state, "rtt": {"p99": p99_us}, "txerrs": errors, "rxerrs": 0, "req_timeouts": 0}


def told(name: str = "client-1", **brokers: dict[str, Any]) -> str:
    """The fields that are read, in the form of STATISTICS.md."""
    partition = {"fetchq_cnt": 20, "fetchq_size": 3_000}
    topics = {"catalogue.listings": {"partitions": {"0": partition, "1": partition}}}
    return json.dumps({"name": name, "msg_cnt": 7, "msg_size": 900, "brokers": brokers, "topics": topics})


def read(metrics: Metrics, name: str, client: str) -> float | None:
    return metrics.registry.get_sample_value(f"enricher_client_{name}", {"client": client})


def test_a_clients_brokers_time_and_queue_are_shown() -> None:
    """Connected brokers, the slowest broker's time and what waits in the queue; the bootstrap's own connection is no broker."""
    metrics = Metrics()
    brokers = {"1": a_broker(1, p99_us=2_000), "2": a_broker(2, state="CONNECT", p99_us=50_000), "b": a_broker(-1)}
    ClientStatistics("consumer", metrics)(told(**brokers))
    ClientStatistics("producer", metrics)(told(**brokers))
    assert read(metrics, "brokers_up", "consumer") == 1
    assert read(metrics, "rtt_seconds", "consumer") == 0.05
    assert (read(metrics, "queue_records", "consumer"), read(metrics, "queue_bytes", "consumer")) == (40, 6_000)
    assert (read(metrics, "queue_records", "producer"), read(metrics, "queue_bytes", "producer")) == (7, 900)


def test_errors_go_on_counting_when_the_client_is_another() -> None:
    """The client tells totals since its start: only what was added counts, and a producer that replaces one starts from 0."""
    metrics = Metrics()
    statistics = ClientStatistics("producer", metrics)
    for name, errors in (("a", 2), ("a", 5), ("b", 0), ("b", 1)):
        statistics(told(name, broker=a_broker(1, errors=errors)))
    assert read(metrics, "errors_total", "producer") == 6
