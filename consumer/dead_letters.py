"""Reading the dead-letter topic, and putting its records back on the input topic once their cause is gone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Message

from consumer.kafka import headers_of
from consumer.plain_producer import PlainProducer
from consumer.records import OutputRecord
from consumer.settings import KafkaSettings
from consumer.topic_reader import TopicReader

log = structlog.get_logger(__name__)

_OWN_HEADERS = ("dlq.stage", "dlq.reason", "dlq.topic", "dlq.partition", "dlq.offset", "dlq.timestamp")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic; `position` is where it lies there, the other fields are about the original."""

    position: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    stage: str
    reason: str
    source: str
    partition: int | None
    timestamp_ms: int
    attempts: int
    truncated: str = ""

    def document(self, *, whole: bool) -> dict[str, Any]:
        """As JSON: `list` shows where and why, `show` the bytes and headers, too."""
        document: dict[str, Any] = {
            "position": self.position,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "stage": self.stage,
            "reason": self.reason,
            "source": self.source,
            "timestamp_ms": self.timestamp_ms,
            "attempts": self.attempts,
            "truncated": self.truncated or None,
            "value_bytes": None if self.value is None else len(self.value),
        }
        if whole:
            document["value_hex"] = None if self.value is None else self.value.hex()
            document["headers"] = {
                name: None if value is None else value.decode(errors="replace") for name, value in self.headers
            }
        return document


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; None matches all. Times are the originals', in ms since the epoch."""

    stage: str | None = None
    reason_contains: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    position: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a dead letter is meant."""
        return (
            self.stage in (None, letter.stage)
            and (self.reason_contains is None or self.reason_contains.lower() in letter.reason.lower())
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
            and self.position in (None, letter.position)
        )


def read_dead_letters(settings: KafkaSettings, chosen: Filter) -> Iterator[DeadLetter]:
    """All dead letters that stand in the topic now, by partition and offset; committed ones only.

    Raises:
        DependencyUnavailable: Kafka or the topic is not there.
    """
    with TopicReader(settings, settings.dead_letter_topic) as reader:
        for partition in range(len(reader.bounds)):
            for _, message in reader.read(partition):
                if chosen.matches(letter := _letter(message)):
                    yield letter


def _letter(message: Message) -> DeadLetter:
    headers = headers_of(message)
    about = {name: (value or b"").decode(errors="replace") for name, value in headers if name.startswith("dlq.")}
    timestamp, attempts = about.get("dlq.timestamp", ""), about.get("dlq.attempts", "")
    return DeadLetter(
        position=f"{message.partition()}/{message.offset()}",
        key=message.key(),
        value=message.value(),
        headers=headers,
        stage=about.get("dlq.stage", ""),
        reason=about.get("dlq.reason", ""),
        source=f"{about.get('dlq.topic', '')}/{about.get('dlq.partition', '')}/{about.get('dlq.offset', '')}",
        partition=int(partition) if (partition := about.get("dlq.partition", "")).isdigit() else None,
        timestamp_ms=int(timestamp) if timestamp.isdigit() else 0,
        attempts=int(attempts) if attempts.isdigit() else 0,
        truncated=about.get("dlq.truncated", ""),
    )


def replay(settings: KafkaSettings, chosen: Filter) -> int:
    """Puts the original key, value and headers of the chosen dead letters back on the input topic.

    The dead letters stay where they are, and one whose value was cut away (`dlq.truncated`) is passed over: its original stands
    in the input topic. `dlq.attempts` goes along, so that one which fails again counts on.

    Returns:
        How many were put back; all of them are on the broker.
    """
    producer = PlainProducer(settings)
    count = 0
    for letter in read_dead_letters(settings, chosen):
        if letter.truncated:
            log.warning("dead_letter_not_replayed", position=letter.position, source=letter.source, reason=letter.truncated)
            continue
        headers = tuple(one for one in letter.headers if one[0] not in _OWN_HEADERS)
        # Into the partition it came from: another one would put it out of order with its key's other changes.
        producer.send(OutputRecord(settings.input_topic, letter.key, letter.value, headers, letter.partition))
        count += 1
    producer.flush()
    return count


def as_json_line(letter: DeadLetter, *, whole: bool) -> str:
    """One line of JSON."""
    return json.dumps(letter.document(whole=whole), ensure_ascii=False)
