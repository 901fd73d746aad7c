"""What librdkafka says of itself, the few figures of its many that an operator can act on.

Source: github.com/confluentinc/librdkafka/blob/master/STATISTICS.md.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from consumer.telemetry import Metrics

INTERVAL_MS = 10_000
_US_PER_S = 1e6

Client = Literal["consumer", "producer"]


class ClientStatistics:
    """Turns a client's statistics into metrics. Make one for each client; the client calls it while it is polled."""

    def __init__(self, client: Client, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._name = ""  # another one is another client, which replaced the first
        self._errors: dict[str, int] = {}  # broker to its total so far

    def settings(self) -> dict[str, Any]:
        """What the client is configured with; the user's `kafka.properties` may set another interval, 0 for none."""
        return {"statistics.interval.ms": INTERVAL_MS, "stats_cb": self}

    def __call__(self, text: str) -> None:
        """Takes the client's JSON."""
        told = json.loads(text)
        client, metrics = self._client, self._metrics
        brokers = {name: one for name, one in told["brokers"].items() if one["nodeid"] >= 0}  # others are for the bootstrap only
        metrics.client_brokers_up.labels(client).set(sum(one["state"] == "UP" for one in brokers.values()))
        slowest_us = max((one["rtt"]["p99"] for one in brokers.values()), default=0)
        metrics.client_rtt_seconds.labels(client).set(slowest_us / _US_PER_S)
        records, size = _fetched(told) if client == "consumer" else (told["msg_cnt"], told["msg_size"])
        metrics.client_queue_records.labels(client).set(records)
        metrics.client_queue_bytes.labels(client).set(size)
        if told["name"] != self._name:
            self._name = told["name"]
            self._errors.clear()
        for name, one in brokers.items():
            errors = one["txerrs"] + one["rxerrs"] + one["req_timeouts"]
            metrics.client_errors.labels(client).inc(max(0, errors - self._errors.get(name, 0)))
            self._errors[name] = errors


def _fetched(told: Mapping[str, Any]) -> tuple[int, int]:
    """Records and bytes that wait to be polled."""
    partitions = [one for topic in told["topics"].values() for one in topic["partitions"].values()]
    return sum(one["fetchq_cnt"] for one in partitions), sum(one["fetchq_size"] for one in partitions)
