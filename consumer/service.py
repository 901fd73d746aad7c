"""The service: what it is made of, in which order it starts, and how it stops."""

import time
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TypeVar

import structlog

from consumer import __version__
from consumer.batches import Outputs
from consumer.client_statistics import ClientStatistics
from consumer.cover_fetch import CoverFetcher
from consumer.crash_marks import CrashMarks
from consumer.delivery import open_delivery
from consumer.errors import DependencyUnavailable, SettingsError
from consumer.health import Health, serve
from consumer.kafka import KafkaSource, message_bytes_max, partition_counts
from consumer.model_swap import ModelSwap
from consumer.pipeline import Pipeline
from consumer.prediction import Predictor
from consumer.prediction_store import open_store
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.schemas import ENRICHED_LISTING
from consumer.serving import ServedModel, Wanted, load_bundle, open_model, open_predictor, read_wanted
from consumer.settings import KafkaSettings, Settings
from consumer.suspects import Suspects
from consumer.telemetry import Metrics
from consumer.traces import Traces, open_traces
from consumer.trial import Trial

log = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_S = 0.5
KAFKA_TIMEOUT_S = 5.0


class Service:
    """A replica of the service, from settings.

    Args:
        registry: one to use instead of `schema_registry.url`; the demo shares one that lives in its process.
    """

    def __init__(self, settings: Settings, *, registry: SchemaRegistry | None = None) -> None:
        self._settings = settings
        self._registry = registry
        self.metrics = Metrics()
        self.health = Health(stall_seconds=settings.health.stall_seconds)
        self._swap: ModelSwap | None = None

    def reload(self) -> None:
        """Looks soon whether another model is wanted (`model_swap.py`). For a signal handler: sets a flag and no more."""
        if self._swap is not None:
            self._swap.ask()

    def run(self, stop: Event) -> None:
        """Works until `stop` is set and what was in flight is committed.

        Raises:
            SettingsError: a setting or the bundle is wrong.
            DependencyUnavailable: Kafka, its topics, the registry or Redis were not there within `startup.deadline_seconds`.
            CircuitOpen, Fenced, DrainIncomplete: see `errors`.
        """
        settings = self._settings
        traces = open_traces(settings.traces, version=__version__)
        http = serve(settings.http.host, settings.http.port, health=self.health, metrics_registry=self.metrics.registry)
        try:
            self.metrics.set_build(version=__version__)
            wanted = read_wanted(settings.model)
            bundle = load_bundle(settings.model, wanted)
            model = open_model(settings, bundle, bundle.manifest.epoch if wanted.epoch is None else wanted.epoch)
            self._serves(model)
            identity, choice = model.identity, model.choice
            log.info("model_ready", model=str(identity), epoch=identity.epoch, backend=choice.backend.name, reason=choice.reason)
            trial = Trial(self._opens(model))

            def taken_over(taken: ServedModel) -> None:
                self._serves(taken)
                trial.use(self._opens(taken))

            with ModelSwap(
                model,
                wanted=wanted,
                look=partial(read_wanted, settings.model),
                load=partial(load_bundle, settings.model),
                open_model=partial(open_model, settings),
                on_taken=taken_over,
                metrics=self.metrics,
                same_covers=settings.covers.fetch,
            ) as self._swap:
                self._run(stop, model, self._swap, trial, traces)
        finally:
            traces.close()
            http.close()

    def _serves(self, model: ServedModel) -> None:
        identity, choice = model.identity, model.choice
        self.metrics.set_model(identity, backend=choice.backend.name, reason=choice.reason)
        self.metrics.set_bundle(model.bundle.digest, engine=choice.backend.engine)
        self.metrics.backend_fallback.set(choice.fallback)
        model.predictor.observe = self.metrics.drift.watch(model.bundle.manifest)
        self.health.set_condition("model", holds=True, reason=f"{identity} on {choice.backend.name}: {choice.reason}")

    def _opens(self, model: ServedModel) -> Callable[[], Predictor]:
        return partial(open_predictor, self._settings, Wanted(model.bundle.path))

    def _run(self, stop: Event, first: ServedModel, swap: ModelSwap, trial: Trial, traces: Traces) -> None:
        settings = self._settings
        url, prefix = settings.redis.url.get_secret_value(), settings.redis.key_prefix
        store = open_store(settings.redis)
        registry = self._registry or SchemaRegistry(settings.schema_registry.url, settings.schema_registry.properties)
        marks = CrashMarks(url, key_prefix=prefix, group_id=settings.kafka.group_id, ca=settings.redis.ca)
        suspects = Suspects(
            marks,
            trial,
            crashes_before_trial=settings.delivery.crashes_before_trial,
            reach=settings.batch.max_records * settings.batch.max_in_flight,
            progress=self.health.progress,
        )
        self._await(stop, "redis", store.check)
        outputs = self._await(stop, "schema registry and topics", lambda: open_outputs(settings.kafka, registry))
        if outputs is None:
            return
        covers = settings.covers
        fetcher = CoverFetcher(covers, decode=first.predictor.decode_cover, metrics=self.metrics) if covers.fetch else None
        pipeline: Pipeline | None = None
        source = KafkaSource(
            settings.kafka,
            before_revoked=lambda: pipeline.before_revoked() if pipeline else None,
            after_lost=lambda: pipeline.lost() if pipeline else None,
            on_rebalance=self._rebalanced,
            statistics=ClientStatistics("consumer", self.metrics).settings(),
        )
        try:
            opening = partial(
                open_delivery,
                settings.kafka,
                settings.delivery,
                batch_bytes_max=outputs.batch_bytes_max,
                statistics=ClientStatistics("producer", self.metrics).settings(),
            )
            delivery = self._await(stop, "kafka", lambda: opening(source=source))
            if delivery is None:
                return
            pipeline = Pipeline(
                settings,
                source=source,
                delivery=delivery,
                store=store,
                schemas=registry,
                model=swap.current,
                outputs=outputs,
                metrics=self.metrics,
                health=self.health,
                fetcher=fetcher,
                suspects=suspects,
                traces=traces,
            )
            try:
                pipeline.run(stop)
            finally:
                delivery.close()
        finally:
            source.close()
            store.close()
            if fetcher is not None:
                fetcher.close()
            marks.close()
            log.info("left_the_group")

    def _rebalanced(self, kind: str, held: int) -> None:
        self.metrics.rebalances.labels(kind).inc()
        self.metrics.assigned_partitions.set(held)
        if kind == "assigned":  # an empty assignment, with more members than partitions, is well too
            self.health.set_condition("kafka_assigned", holds=True, reason="joined the group")

    def _await(self, stop: Event, what: str, call: Callable[[], T]) -> T | None:
        """Asks until there is an answer, for `startup.deadline_seconds`; None when `stop` was set meanwhile."""
        deadline_s = time.monotonic() + self._settings.startup.deadline_seconds
        while not stop.is_set():
            try:
                answer = call()
            except DependencyUnavailable as error:
                self.health.set_condition(what, holds=False, reason=f"{error.dependency}: {error.reason}")
                if time.monotonic() >= deadline_s:
                    waited = f"{self._settings.startup.deadline_seconds:g} s (startup.deadline_seconds)"
                    raise DependencyUnavailable(error.dependency, f"{error.reason}; waited {waited}") from error
                log.warning("waiting_at_start", what=what, dependency=error.dependency, reason=error.reason)
                stop.wait(RETRY_S)
            else:
                self.health.set_condition(what, holds=True, reason="answered")
                return answer
        return None


def open_outputs(kafka: KafkaSettings, registry: SchemaRegistry) -> Outputs:
    """Registers the enriched event's schema and looks at the topics.

    Raises:
        DependencyUnavailable: the registry or Kafka does not answer, or a topic is not there (yet).
        SettingsError: the registry refuses the schema.
    """
    schema_id = registry.register(f"{kafka.output_topic}-value", ENRICHED_LISTING)
    schema = registry.schemas([schema_id])[schema_id]
    if not isinstance(schema, ParsedSchema):
        raise SettingsError(f"schema_registry: expected to read back schema {schema_id}, found: {schema}")
    counts = partition_counts(kafka, timeout_s=KAFKA_TIMEOUT_S)
    topics = (kafka.input_topic, kafka.output_topic, kafka.dead_letter_topic)
    if missing := [topic for topic in topics if not counts.get(topic)]:
        raise DependencyUnavailable("kafka", f"expected the topics {', '.join(topics)}, missing: {', '.join(missing)}")
    keep = counts[kafka.input_topic] == counts[kafka.output_topic]
    if not keep:
        log.warning(
            "partition_counts_differ",
            input=counts[kafka.input_topic],
            output=counts[kafka.output_topic],
            effect="answers are placed by the client's hash of their key",
        )
    sizes = message_bytes_max(kafka, topics, timeout_s=KAFKA_TIMEOUT_S)
    bytes_max = sizes.get(kafka.dead_letter_topic)
    if bytes_max is not None and bytes_max < sizes.get(kafka.input_topic, 0):
        log.warning(
            "dead_letter_topic_too_small",
            topic=kafka.dead_letter_topic,
            max_message_bytes=bytes_max,
            input=sizes[kafka.input_topic],
            effect="larger dead letters go there without their value",
        )
    return Outputs(
        kafka.output_topic,
        schema,
        keep_partition=keep,
        dead_letter_topic=kafka.dead_letter_topic,
        dead_letter_bytes_max=bytes_max,
        batch_bytes_max=min((sizes[topic] for topic in topics[1:] if topic in sizes), default=None),
    )
