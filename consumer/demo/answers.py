"""What the service answered: read from the enriched and the dead-letter topic while the demo goes on, decoded afterwards.

Reading is a poll and a note of the time, nothing more: the service runs in this process and needs the processor.
"""

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer.codec import FRAME, SOURCE_HEADER
from consumer.demo.embedded import FETCH_WAIT_MS, QUIET
from consumer.errors import DependencyUnavailable
from consumer.schema_registry import ParsedSchema, SchemaRegistry, UnknownSchema

POLL_S = 0.1
STOP_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A record of the enriched topic, as it came. `source` is the input record's topic/partition/offset."""

    received_s: float
    source: str
    listing_id: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic."""

    source: str
    key: bytes | None
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class EnrichedEvent:
    """A decoded answer; `outcome` is "DELETED" for a null value, which has no predictions."""

    received_s: float
    listing_id: str
    version: int | None
    outcome: str
    model: str
    predictions: dict[str, Any]


class AnswerReader:
    """Follows both topics from their beginning, on a thread of its own. Each input record counts once.

    It is no group's member: it reads all partitions, and joining a group would cost seconds.
    """

    def __init__(self, bootstrap_servers: str, *, output_topic: str, dead_letter_topic: str, partitions: int) -> None:
        settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "demo-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "logger": QUIET,
        }
        self._dead_letter_topic = dead_letter_topic
        self._consumer = Consumer(settings)
        topics = (output_topic, dead_letter_topic)
        self._consumer.assign([TopicPartition(topic, n, 0) for topic in topics for n in range(partitions)])
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="demo-reader", daemon=True)
        self._answers: dict[str, RawAnswer] = {}
        self._dead_letters: dict[str, DeadLetter] = {}
        self.failure: KafkaError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(STOP_DEADLINE_S)
        self._consumer.close()

    @property
    def count(self) -> int:
        """How many input records have been answered, dead letters among them."""
        return len(self._answers) + len(self._dead_letters)

    def answers(self) -> list[RawAnswer]:
        with self._changed:
            return list(self._answers.values())

    def dead_letters(self) -> list[DeadLetter]:
        with self._changed:
            return list(self._dead_letters.values())

    def wait_for(self, count: int, *, timeout_s: float) -> bool:
        """Waits until `count` input records have been answered; says whether they have.

        Raises:
            DependencyUnavailable: the broker no longer answers the reader.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self.count >= count or self.failure is not None, timeout_s)
        if self.failure is not None:
            raise DependencyUnavailable("kafka", f"the demo's reader: {self.failure}")
        return done

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                message = self._consumer.poll(POLL_S)
            except KafkaException as error:
                self._fail(error.args[0])
                return
            if message is None:
                continue
            problem = message.error()
            if problem is None:
                self._note(message)
            elif problem.fatal():
                self._fail(problem)
                return

    def _fail(self, error: KafkaError) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    def _note(self, message: Message) -> None:
        received_s = time.monotonic()
        headers: dict[str, str] = {pair[0]: _text(pair[1]) for pair in message.headers() or []}
        key = _bytes(message.key())
        with self._changed:
            if message.topic() == self._dead_letter_topic:
                source = "/".join(headers[name] for name in ("dlq.topic", "dlq.partition", "dlq.offset"))
                letter = DeadLetter(source, key, headers["dlq.stage"], headers["dlq.reason"])
                self._dead_letters.setdefault(source, letter)
            else:
                source = headers[SOURCE_HEADER]
                answer = RawAnswer(received_s, source, (key or b"").decode(), _bytes(message.value()))
                self._answers.setdefault(source, answer)
            self._changed.notify_all()


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def decode_answers(answers: Sequence[RawAnswer], registry: SchemaRegistry) -> list[EnrichedEvent]:
    """Reads the Avro of the enriched events as any reader of the topic would: by the schema id in front."""
    ids = {FRAME.unpack_from(one.value)[1] for one in answers if one.value is not None}
    schemas = registry.schemas(ids)
    return [_decoded(one, schemas) for one in answers]


def _decoded(answer: RawAnswer, schemas: dict[int, ParsedSchema | UnknownSchema]) -> EnrichedEvent:
    if answer.value is None:
        return EnrichedEvent(answer.received_s, answer.listing_id, None, "DELETED", "", {})
    schema = schemas[FRAME.unpack_from(answer.value)[1]]
    if isinstance(schema, UnknownSchema):
        raise DependencyUnavailable("schema_registry", f"the enriched event's schema: {schema.reason}")
    event: Any = fastavro.schemaless_reader(io.BytesIO(answer.value[FRAME.size :]), schema.schema, None)
    return EnrichedEvent(
        received_s=answer.received_s,
        listing_id=event["listing_id"],
        version=event["version"],
        outcome=event["outcome"],
        model=f"{event['model_name']}@{event['model_version']}",
        predictions=event["predictions"],
    )
