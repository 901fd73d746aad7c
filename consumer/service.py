"""The service: what it is made of, in which order it starts, and how it stops."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import TypeVar

import structlog

from consumer import __version__
from consumer.batches import Outputs
from consumer.cover_fetch import CoverFetcher
from consumer.crash_marks import CrashMarks
from consumer.delivery import open_delivery
from consumer.errors import DependencyUnavailable, SettingsError
from consumer.health import Health, serve
from consumer.inference.choice import open_backend
from consumer.kafka import KafkaSource, message_bytes_max, partition_counts
from consumer.pipeline import Pipeline
from consumer.prediction import Predictor
from consumer.prediction_store import PredictionStore
from consumer.schema_registry import ParsedSchema, SchemaRegistry
from consumer.schemas import ENRICHED_LISTING
from consumer.settings import KafkaSettings, Settings
from consumer.suspects import Suspects
from consumer.telemetry import Metrics
from consumer.trial import Trial
from model.bundle import Bundle, BundleError
from model.signing import KeyUnusable

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

    def run(self, stop: Event) -> None:
        """Works until `stop` is set and what was in flight is committed.

        Raises:
            SettingsError: a setting or the bundle is wrong.
            DependencyUnavailable: Kafka, its topics, the registry or Redis were not there within `startup.deadline_seconds`.
            CircuitOpen, Fenced, DrainIncomplete: see `errors`.
        """
        settings = self._settings
        http = serve(settings.http.host, settings.http.port, health=self.health, metrics_registry=self.metrics.registry)
        # One thread owns the backend from its creation to its end: a GPU context belongs to its thread.
        backend_thread = ThreadPoolExecutor(1, thread_name_prefix="backend")
        predictor: Predictor | None = None
        try:
            bundle = load_bundle(settings)
            predictor = backend_thread.submit(self._open_predictor, bundle).result()
            self._run(stop, predictor, backend_thread)
        finally:
            if predictor is not None:
                backend_thread.submit(predictor.close).result()
            backend_thread.shutdown()
            http.close()

    def _open_predictor(self, bundle: Bundle) -> Predictor:
        choice = open_backend(self._settings.model, bundle)
        predictor = Predictor(bundle, choice.backend, cover_bytes_max=self._settings.covers.max_bytes)
        predictor.warm_up()
        identity = predictor.identity
        self.metrics.set_build(version=__version__)
        self.metrics.set_model(name=identity.name, version=identity.version, epoch=identity.epoch, backend=choice.backend.name)
        self.metrics.backend_fallback.set(choice.fallback)
        self.health.set_condition("model", holds=True, reason=f"{identity} on {choice.backend.name}")
        log.info("model_ready", model=str(identity), epoch=identity.epoch, backend=choice.backend.name, reason=choice.reason)
        return predictor

    def _run(self, stop: Event, predictor: Predictor, backend_thread: ThreadPoolExecutor) -> None:
        settings = self._settings
        url, prefix = settings.redis.url.get_secret_value(), settings.redis.key_prefix
        store = PredictionStore(url, key_prefix=prefix, ttl_seconds=settings.redis.ttl_seconds)
        registry = self._registry or SchemaRegistry(settings.schema_registry.url, settings.schema_registry.properties)
        marks = CrashMarks(url, key_prefix=prefix, group_id=settings.kafka.group_id)
        suspects = Suspects(
            marks,
            Trial(partial(open_predictor, settings)),
            crashes_before_trial=settings.delivery.crashes_before_trial,
            reach=settings.batch.max_records * settings.batch.max_in_flight,
            progress=self.health.progress,
        )
        self._await(stop, "redis", store.ping)
        outputs = self._await(stop, "schema registry and topics", lambda: open_outputs(settings.kafka, registry))
        if outputs is None:
            return
        covers = settings.covers
        fetcher = CoverFetcher(covers, decode=predictor.decode_cover, metrics=self.metrics) if covers.fetch else None
        pipeline: Pipeline | None = None
        source = KafkaSource(
            settings.kafka,
            before_revoked=lambda: pipeline.before_revoked() if pipeline else None,
            after_lost=lambda: pipeline.lost() if pipeline else None,
            on_rebalance=self._rebalanced,
        )
        try:
            delivery = self._await(stop, "kafka", lambda: open_delivery(settings.kafka, settings.delivery, source=source))
            if delivery is None:
                return
            pipeline = Pipeline(
                settings,
                source=source,
                delivery=delivery,
                store=store,
                schemas=registry,
                predictor=predictor,
                backend_thread=backend_thread,
                outputs=outputs,
                metrics=self.metrics,
                health=self.health,
                fetcher=fetcher,
                suspects=suspects,
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

    def _rebalanced(self, kind: str, partitions: int) -> None:
        self.metrics.rebalances.labels(kind).inc()
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


def load_bundle(settings: Settings) -> Bundle:
    """The bundle of `model.bundle`, every file checked and, with `model.public_key`, who signed it. Raises: SettingsError."""
    try:
        return Bundle.load(settings.model.bundle, public_key=settings.model.public_key)
    except KeyUnusable as error:
        raise SettingsError(f"model.public_key: {error}") from error
    except BundleError as error:
        raise SettingsError(f"model.bundle: {error}") from error


def open_predictor(settings: Settings) -> Predictor:
    """The model in another process, which has no metrics and no health (`consumer/trial.py`). Raises: SettingsError."""
    bundle = load_bundle(settings)
    return Predictor(bundle, open_backend(settings.model, bundle).backend, cover_bytes_max=settings.covers.max_bytes)


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
    sizes = message_bytes_max(kafka, (kafka.input_topic, kafka.dead_letter_topic), timeout_s=KAFKA_TIMEOUT_S)
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
    )
