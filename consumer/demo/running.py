"""The running demo: service, publisher and reader around the embedded broker, store and registry."""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import KafkaError, Message, Producer
from pydantic import SecretStr
from rich.progress import Progress

from consumer.client_log import CLIENT_LOG
from consumer.demo.answers import AnswerReader
from consumer.demo.broken import (
    OTHER_SCHEMA,
    OTHER_SUBJECT,
    BrokenEvent,
    Writer,
    broken_events,
    small_jpeg,
)
from consumer.demo.catalogue import DemoListing
from consumer.demo.embedded import FETCH_WAIT_MS, QUIET, SESSION_TIMEOUT_MS
from consumer.demo.scenario import TimeIsUp
from consumer.errors import DependencyUnavailable, EnricherError
from consumer.publish import Publisher
from consumer.schema_registry import SchemaRegistry, UnknownSchema
from consumer.schemas import LISTING, LISTING_ENVELOPE
from consumer.service import Service
from consumer.settings import (
    HttpSettings,
    KafkaSettings,
    LogSettings,
    RedisSettings,
    SchemaRegistrySettings,
    Settings,
)

PARTITIONS = 4
REGISTRY_URL = "mock://demo"  # in this process, and one object for all: another would know no schema
NO_ANSWER_S_MAX = 30.0
DRAIN_S_MAX = 30.0
LOOK_S = 0.1


def demo_settings(*, bootstrap_servers: str, redis_url: str) -> Settings:
    """The service's own defaults but for the addresses and what the embedded broker does slowly."""
    return Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            properties={"session.timeout.ms": SESSION_TIMEOUT_MS, "fetch.wait.max.ms": FETCH_WAIT_MS},
        ),
        schema_registry=SchemaRegistrySettings(url=REGISTRY_URL),
        redis=RedisSettings(url=SecretStr(redis_url)),
        http=HttpSettings(host="127.0.0.1", port=0),
        log=LogSettings(level="warning"),
    )


class RunningShop:
    """Publishes and follows the answers; the progress bars move with it."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: SchemaRegistry,
        reader: AnswerReader,
        service: "Future[None]",
        progress: Progress,
        ends_at_s: float = math.inf,
    ) -> None:
        self._topic = settings.kafka.input_topic
        self._publisher = Publisher(settings, registry)
        self._producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "logger": QUIET})
        self._undelivered: list[KafkaError] = []
        self._reader = reader
        self._service = service
        self._progress = progress
        self._ends_at_s = ends_at_s  # of time.monotonic
        self._published_bar = progress.add_task("published", total=None)
        self._answered_bar = progress.add_task("answered", total=None)
        self.sent = 0

    def expect(self, total: int) -> None:
        """Says how many events there will be in all."""
        for bar in (self._published_bar, self._answered_bar):
            self._progress.update(bar, total=total)

    def publish(self, listing: DemoListing, *, version: int, changes: dict[str, Any] | None = None) -> None:
        self._about_to_send()
        self._publisher.publish({**listing.values, "version": version, **(changes or {})}, listing.cover)

    def publish_broken(self, events: Sequence[BrokenEvent]) -> None:
        """Past the publisher, which would refuse them.

        The two producers take turns. Where both write to a partition at once Tansu may show a reader the later batch
        first, and the reader never comes back for the earlier one (about 1 run in 150 on a busy machine).
        """
        self._publisher.flush()
        for event in events:
            self._about_to_send()
            self._producer.produce(self._topic, event.value, event.key, on_delivery=self._note_delivery)
        left = self._producer.flush(NO_ANSWER_S_MAX)
        if self._undelivered or left:
            reason = self._undelivered[0] if self._undelivered else f"{left} are not acknowledged"
            raise DependencyUnavailable("kafka", f"the broken events: {reason}")

    def delete(self, listing_id: str, *, version: int) -> None:
        self._about_to_send()
        self._publisher.delete(listing_id, version)

    def wait_until_answered(self, phase: str) -> None:
        """Raises: EnricherError, when the service ended or `NO_ANSWER_S_MAX` passed without an answer."""
        self._publisher.flush()
        answered, since_s = self._reader.count, time.monotonic()
        while not self._reader.wait_for(self.sent, timeout_s=LOOK_S):
            self._show_answered(phase)
            if time.monotonic() > self._ends_at_s:
                raise TimeIsUp
            if self._service.done():
                self._service.result()
                raise EnricherError("the service ended before all events were answered")
            if self._reader.count > answered:
                answered, since_s = self._reader.count, time.monotonic()
            elif time.monotonic() - since_s > NO_ANSWER_S_MAX:
                missing = self.sent - answered
                raise EnricherError(f"no answer for {NO_ANSWER_S_MAX:.0f} s to {missing} of {self.sent} events ({phase})")
        self._show_answered("")

    def _note_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._undelivered.append(error)

    def _about_to_send(self) -> None:
        if time.monotonic() > self._ends_at_s:
            raise TimeIsUp
        self.sent += 1
        self._progress.update(self._published_bar, completed=self.sent)
        if self.sent % 16 == 0:
            self._show_answered(None)

    def _show_answered(self, phase: str | None) -> None:
        self._progress.update(self._answered_bar, completed=self._reader.count)
        if phase is not None:
            self._progress.update(self._answered_bar, description=f"answered ({phase})" if phase else "answered")


@contextmanager
def running_service(settings: Settings, registry: SchemaRegistry) -> Iterator["Future[None]"]:
    """The service on a thread of this process, as `consumer run` has it; drained and stopped at the end.

    Raises:
        EnricherError: what the service itself ended with.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="service") as executor:
        ended = executor.submit(Service(settings, registry=registry).run, stop)
        try:
            yield ended
        finally:
            stop.set()
        try:
            ended.result(DRAIN_S_MAX)
        except FutureTimeoutError:
            raise EnricherError(f"the service did not stop within {DRAIN_S_MAX:.0f} s") from None


def demo_broken_events(settings: Settings, registry: SchemaRegistry, *, jpeg: bytes | None) -> list[BrokenEvent]:
    """The broken events, written with the schemas that this registry knows."""

    def writer(text: str, subject: str) -> Writer:
        schema_id = registry.register(subject, text)
        parsed = registry.schemas([schema_id])[schema_id]
        if isinstance(parsed, UnknownSchema):
            raise DependencyUnavailable("schema_registry", parsed.reason)
        return Writer(parsed)

    return broken_events(
        listing=writer(LISTING, f"{settings.kafka.input_topic}-value"),
        other=writer(OTHER_SCHEMA, OTHER_SUBJECT),
        envelope=writer(LISTING_ENVELOPE, f"{OTHER_SUBJECT}.envelope"),
        whole_jpeg=jpeg or small_jpeg(),
    )


@contextmanager
def logs_in(path: Path) -> Iterator[None]:
    """Sends the service's log to a file: between progress bars nobody could read it."""
    former = structlog.get_config()
    client_log = logging.FileHandler(path.with_name("kafka-client.log"), encoding="utf-8", delay=True)
    CLIENT_LOG.addHandler(client_log)
    former_propagate, CLIENT_LOG.propagate = CLIENT_LOG.propagate, False
    with path.open("w", encoding="utf-8") as file:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.WriteLoggerFactory(file=file),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.configure(**former)
            CLIENT_LOG.propagate = former_propagate
            CLIENT_LOG.removeHandler(client_log)
            client_log.close()
