"""Logs and metrics: what an operator sees of the service.

Logs are events with fields. Every metric stands in `Metrics` with its unit and meaning, or, where a whole batch is counted at a
time in arrays, in `drift.Drift`, and nowhere else.
"""

import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.cover_address import Missing
from consumer.drift import Drift
from consumer.records import Answer, InputRecord, ModelIdentity, Rejected, Tombstone

_STAGE_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LATENCY_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1_800)
_BATCH_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 10_000)

# A reason is a sentence with the record's own values in it; a label needs few values. The first that fits counts.
_REASONS = (
    ("too_large", r"cover: at most"),
    ("cover", r"cover: "),
    ("key", r"key: |key and id differ"),
    ("deletion", r"a deletion |header version"),
    ("debezium", r"Debezium op"),
    ("framing", r"not Avro in Confluent framing"),
    ("unknown_schema", r"schema \d+: "),
    ("avro", r"not a record of schema"),
    ("field", r"[a-z_]+: (expected|at most) .*found"),
    ("not_finite", r"the model's output is not finite"),
    ("ends_the_process", r"it ends the process"),
)
_REASONS_OF_STAGES = {
    "decode": ("key", "deletion", "debezium", "framing", "unknown_schema", "avro", "field"),
    "cover": ("too_large", "cover"),
    "features": ("other",),
    "inference": ("not_finite", "other"),
    "trial": ("ends_the_process",),
}
_REASON = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _REASONS), re.DOTALL)

PipelineStage = Literal["decode", "known", "covers", "features", "infer", "store", "produce", "commit"]


def configure_logging(level: str, fmt: Literal["json", "console"]) -> None:
    """Sends structlog's events and the standard library's records to stderr in one form. May be called again.

    Args:
        level: debug, info, warning or error; what is below is dropped.
        fmt: "json" is one object a line with `timestamp` (ISO 8601, UTC), `level` and `event`; "console" is for people.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.UnicodeDecoder(),
    ]
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if fmt == "json":
        # dict_tracebacks would print local variables, and with them whatever secret they hold.
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        plain = structlog.dev.plain_traceback
        last.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request, with its URL, at info
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # so that a second call holds for loggers that were already used
    )


def reason_class(rejected: Rejected) -> str:
    """One word for why a record was rejected, out of a fixed few."""
    found = _REASON.match(rejected.reason)
    return (found and found.lastgroup) or "other"


class Metrics:
    """All metrics of one service, on a registry of their own, so that two services can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_records()
        self._time_batches()
        self._watch_the_world()
        self._watch_the_clients()
        self._name_what_runs()
        self.drift = Drift()
        self.registry.register(self.drift)

    def _count_records(self) -> None:
        self.records = Counter(
            "enricher_records",
            "Input records done with, by outcome: predicted, reused, superseded, deleted or dead_letter.",
            ["outcome"],
            registry=self.registry,
        )
        self.dead_letters = Counter(
            "enricher_dead_letters",
            "Records written to the dead-letter topic, by the stage that rejected them and one word for the reason.",
            ["stage", "reason"],
            registry=self.registry,
        )
        self.cover_fetches = Counter(
            "enricher_cover_fetches",
            "Covers named by URL, by result: fetched, cached (found or missing before), or why it is missing.",
            ["result"],
            registry=self.registry,
        )
        self.content_lookups = Counter(
            "enricher_content_lookups",
            "Listings whose content hash was looked up in the store: a hit is answered without the model.",
            ["result"],
            registry=self.registry,
        )
        self.stale_writes = Counter(
            "enricher_stale_writes",
            "Writes that the store's version guard refused, because it held something newer.",
            registry=self.registry,
        )
        for outcome in ("predicted", "reused", "superseded", "deleted", "dead_letter"):
            self.records.labels(outcome)  # a rate over a series that does not exist yet misses its first event
        for stage, reasons in _REASONS_OF_STAGES.items():
            for reason in reasons:
                self.dead_letters.labels(stage, reason)
        for result in ("hit", "miss"):
            self.content_lookups.labels(result)
        for result in ("fetched", "cached", *Missing):
            self.cover_fetches.labels(result)

    def _time_batches(self) -> None:
        self.batch_records = Histogram(
            "enricher_batch_records", "Records in a batch.", buckets=_BATCH_RECORDS, registry=self.registry
        )
        self.batch_age_seconds = Histogram(
            "enricher_batch_age_seconds",
            "Seconds from the timestamp of a batch's oldest record to the batch's start.",
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "enricher_stage_seconds",
            "Seconds that one batch spent in a stage: decode, known, covers, features, infer, store, produce or commit.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=self.registry,
        )
        self.latency_seconds = Histogram(
            "enricher_latency_seconds",
            "Seconds from a record's own timestamp to the commit of its outcome.",
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.in_flight_batches = Gauge(
            "enricher_in_flight_batches", "Batches that were read and are not committed.", registry=self.registry
        )

    def _watch_the_world(self) -> None:
        self.lag_records = Gauge(
            "enricher_lag_records",
            "Records of an assigned partition after the committed offset.",
            ["partition"],
            registry=self.registry,
        )
        self.rebalances = Counter(
            "enricher_rebalances",
            "Changes of the assignment, by kind: assigned, revoked or lost.",
            ["kind"],
            registry=self.registry,
        )
        self.assigned_partitions = Gauge(
            "enricher_assigned_partitions",
            "Partitions of the input topic that this replica reads; 0: it stands idle, there are more replicas than partitions.",
            registry=self.registry,
        )
        self.transactions = Counter(
            "enricher_transactions",
            "Kafka transactions, by result: committed or aborted.",
            ["result"],
            registry=self.registry,
        )
        self.dependency_waits = Counter(
            "enricher_dependency_waits",
            "Times that work stopped because a dependency did not answer: kafka, redis or schema_registry.",
            ["dependency"],
            registry=self.registry,
        )
        self.reject_share = Gauge(
            "enricher_reject_share",
            "Share (0 to 1) of the last delivery.reject_window records that were rejected, at the last commit.",
            registry=self.registry,
        )
        self.reject_share_max = Gauge(
            "enricher_reject_share_max",
            "The share (0 to 1) above which the circuit breaker stops the service: delivery.max_reject_share.",
            registry=self.registry,
        )
        for kind in ("assigned", "revoked", "lost"):
            self.rebalances.labels(kind)
        for dependency in ("kafka", "redis", "schema_registry"):
            self.dependency_waits.labels(dependency)
        for result in ("committed", "aborted"):
            self.transactions.labels(result)

    def _watch_the_clients(self) -> None:
        self.client_brokers_up = Gauge(
            "enricher_client_brokers_up",
            "Brokers that a Kafka client of this replica is connected to; client: consumer or producer.",
            ["client"],
            registry=self.registry,
        )
        self.client_rtt_seconds = Gauge(
            "enricher_client_rtt_seconds",
            "Seconds from request to response, 99th percentile of the slowest broker over the last ten seconds.",
            ["client"],
            registry=self.registry,
        )
        self.client_queue_records = Gauge(
            "enricher_client_queue_records",
            "Records in a Kafka client's queue: read ahead and not polled yet, or produced and not acknowledged yet.",
            ["client"],
            registry=self.registry,
        )
        self.client_queue_bytes = Gauge(
            "enricher_client_queue_bytes",
            "Bytes of the records in a Kafka client's queue.",
            ["client"],
            registry=self.registry,
        )
        self.client_errors = Counter(
            "enricher_client_errors",
            "Requests of a Kafka client that failed or timed out, transmission errors included.",
            ["client"],
            registry=self.registry,
        )
        for client in ("consumer", "producer"):
            self.client_errors.labels(client)

    def _name_what_runs(self) -> None:
        self.model_info = Gauge(
            "enricher_model_info",
            "Always 1; the labels name the model that answers, what runs it and why; `engine`: a TensorRT engine's fingerprint.",
            ["name", "version", "epoch", "backend", "engine", "reason"],
            registry=self.registry,
        )
        self.model_swaps = Counter(
            "enricher_model_swaps",
            "Other models that were asked for while the service ran, by outcome: taken_over, rolled_back (to the one before), "
            "refused (the old one goes on), unchanged (it serves already) or superseded (by a later wish, while it was loaded).",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("taken_over", "rolled_back", "refused", "unchanged", "superseded"):
            self.model_swaps.labels(outcome)
        self.backend_fallback = Gauge(
            "enricher_backend_fallback",
            "1 when the preferred inference backend could not be used and another one runs, else 0.",
            registry=self.registry,
        )
        self.bundle_info = Gauge(
            "enricher_bundle_info",
            "Always 1; the labels are the start of the sha256 of the manifest of the bundle that answers, and of its engine's "
            "fingerprint, which is empty where the graph itself runs.",
            ["sha256", "engine"],
            registry=self.registry,
        )
        self.build_info = Gauge(
            "enricher_build_info",
            "Always 1; the labels name the service's version and its Python.",
            ["version", "python"],
            registry=self.registry,
        )

    @contextmanager
    def stage(self, name: PipelineStage) -> Iterator[None]:
        """Observes in `enricher_stage_seconds` how long the block took, also when it raised."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - started)

    def count_batch(self, answers: Sequence[Answer], rejected: Sequence[Rejected], *, refused: int) -> None:
        """Counts a batch's outcomes; `refused` writes were older than what the store holds."""
        for answer in answers:
            gone = answer.record.value is None or isinstance(answer.state, Tombstone)
            self.records.labels("deleted" if gone else answer.outcome.value.lower()).inc()
        for one in rejected:
            self.records.labels("dead_letter").inc()
            self.dead_letters.labels(one.stage.value, reason_class(one)).inc()
        self.stale_writes.inc(refused)

    def set_model(self, model: ModelIdentity, *, backend: str, reason: str) -> None:
        """Names the model that answers from now on, and what runs it and why, in place of an earlier one."""
        self.model_info.clear()
        self.model_info.labels(model.name, model.version, str(model.epoch), backend, model.engine or "", reason).set(1)

    def begin_batch(self, records: Sequence[InputRecord], *, now_ms: int) -> None:
        """A batch is on its way: how large it is, and how long its oldest record has waited."""
        self.batch_records.observe(len(records))
        self.batch_age_seconds.observe(max(0, now_ms - min(one.timestamp_ms for one in records)) / 1000)

    def count_lookups(self, *, hits: int, misses: int) -> None:
        """A batch's content hashes that the store knew, and those that it did not."""
        self.content_lookups.labels("hit").inc(hits)
        self.content_lookups.labels("miss").inc(misses)

    def set_bundle(self, sha256: str, *, engine: str | None) -> None:
        """Names the bundle that answers from now on, by its manifest's digest, and the engine made of it, if any."""
        self.bundle_info.clear()
        self.bundle_info.labels(sha256[:12], (engine or "")[:12]).set(1)

    def set_build(self, *, version: str) -> None:
        """Names the service's version."""
        python = ".".join(str(part) for part in sys.version_info[:3])
        self.build_info.labels(version, python).set(1)

    def set_lag(self, records_by_partition: dict[int, int]) -> None:
        """Lag of the partitions assigned now; those of others disappear."""
        self.lag_records.clear()
        for partition, records in records_by_partition.items():
            self.lag_records.labels(str(partition)).set(records)
