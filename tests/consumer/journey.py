"""A pipeline among fakes, and what came out of it in short words."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastavro

from consumer.batches import Outputs
from consumer.cover_fetch import CoverFetcher
from consumer.health import Health
from consumer.inference.choice import Choice
from consumer.pipeline import Pipeline
from consumer.prediction import Predictor
from consumer.records import OutputRecord
from consumer.serving import ServedModel
from consumer.settings import Settings
from consumer.suspects import Suspects
from consumer.telemetry import Metrics
from consumer.traces import Traces
from model.bundle import Bundle
from tests.examples import ENRICHED_SCHEMA, ENVELOPE_SCHEMA, LISTING_SCHEMA
from tests.fake_model import FakeBackend
from tests.fakes import (
    DEAD_LETTER_TOPIC,
    ENRICHED_TOPIC,
    FakeDelivery,
    FakeKafka,
    FakeSchemas,
    FakeSource,
    FakeStore,
    StopWhen,
    source_of,
)


def a_served_model(bundle: Bundle, backend: FakeBackend) -> ServedModel:
    """As `serving.open_model` makes one."""
    predictor = Predictor(bundle, backend, cover_bytes_max=1_000_000)
    return ServedModel(predictor, ThreadPoolExecutor(1), predictor.identity, bundle, Choice(backend, "a test", fallback=False))


class Journey:
    """One replica of the service with everything around it faked. `settings` are sections: `batch={"max_records": 1}`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        partitions: int = 1,
        keep_partition: bool = True,
        suspects: Suspects | None = None,
        traces: Traces | None = None,
        **settings: Any,
    ) -> None:
        self.kafka = FakeKafka(partitions=partitions)
        self.source = FakeSource(self.kafka)
        self.delivery = FakeDelivery(self.kafka, self.source)
        self.store = FakeStore()
        self.schemas = FakeSchemas(LISTING_SCHEMA, ENVELOPE_SCHEMA)
        self.backend = FakeBackend()
        self.metrics = Metrics()
        self.health = Health(stall_seconds=60, conditions=())
        self.stop: StopWhen | None = None
        read = Settings.model_validate(settings)
        self.model = self._first = a_served_model(bundle, self.backend)
        self.model.predictor.observe = self.metrics.drift.watch(bundle.manifest)
        self.model_for_next: Callable[[], ServedModel] = lambda: self.model
        decode = self.model.predictor.decode_cover
        self.fetcher = CoverFetcher(read.covers, decode=decode, metrics=self.metrics) if read.covers.fetch else None
        self.pipeline = Pipeline(
            read,
            source=self.source,
            delivery=self.delivery,
            store=self.store,
            schemas=self.schemas,
            model=lambda: self.model_for_next(),
            outputs=Outputs(ENRICHED_TOPIC, ENRICHED_SCHEMA, keep_partition, DEAD_LETTER_TOPIC),
            metrics=self.metrics,
            health=self.health,
            fetcher=self.fetcher,
            suspects=suspects,
            traces=traces,
        )
        self.source.before_revoked = self.pipeline.before_revoked
        self.source.after_lost = self.pipeline.lost

    def run(self, until: Callable[[], bool] | None = None, *, deadline_s: float = 10) -> "Journey":
        """Runs on this thread until the condition holds (default: every offset is committed), then drains and, as the service
        does, gives up what is open and leaves the group."""
        self.stop = StopWhen(until or self.kafka.is_done, deadline_s)
        try:
            self.pipeline.run(self.stop)
        finally:
            self.delivery.close()
            self.source.close()
        return self

    def close(self) -> None:
        self.backend.released.set()
        for model in (self._first, self.model):
            model.thread.shutdown()
        if self.fetcher is not None:
            self.fetcher.close()

    def said(self) -> list[tuple[int, int, str]]:
        """Partition, offset and answer of each committed output, in order."""
        return [(*source_of(output), words(output)) for output in self.kafka.outputs]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def waits(self, dependency: str) -> float | None:
        """How often the pipeline waited for a dependency."""
        return self.metric("enricher_dependency_waits_total", dependency=dependency)


def event_of(output: OutputRecord) -> dict[str, Any]:
    """The enriched event as a reader decodes it."""
    assert output.value is not None
    event: Any = fastavro.schemaless_reader(io.BytesIO(output.value[5:]), ENRICHED_SCHEMA.schema, None)
    return dict(event)


def words(output: OutputRecord) -> str:
    """`PREDICTED v3` of an enriched event, `deleted`, or `dead letter: stage`."""
    if output.topic == DEAD_LETTER_TOPIC:
        return f"dead letter: {(dict(output.headers)['dlq.stage'] or b'').decode()}"
    if output.value is None:
        return "deleted"
    event = event_of(output)
    return f"{event['outcome']} v{event['version']}"
