"""A reader beside the running service: what it sees at any moment must not go back, nor trail the topic."""

import threading
import time
from typing import Any

import redis
from confluent_kafka import Consumer, Message, TopicPartition

from consumer.schema_registry import ParsedSchema
from tests.faults.checker import Violation, decode, schema_id
from tests.faults.load import Load
from tests.journey.running import Surroundings, reader_of

PAUSE_S = 0.1


class Watcher:
    """Looks at the store and at committed answers all the time. Use as a context manager; then read `violations`.

    Attributes:
        looks: how often all listings were looked at.
        violations: the store went back, held half a listing, or trailed what was committed when it was asked.
    """

    def __init__(self, surroundings: Surroundings, load: Load) -> None:
        self.looks = 0
        self.violations: list[Violation] = []
        self._surroundings = surroundings
        self._listing_ids = load.listing_ids()
        self._before: dict[str, tuple[int, int, bool]] = {}
        self._committed: dict[str, int] = {}
        self._schemas: dict[int, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        client = reader_of(self._surroundings.redis_url)
        topic = self._surroundings.topics.output
        consumer = Consumer(
            {
                "bootstrap.servers": self._surroundings.bootstrap_servers,
                "group.id": "watcher-that-never-commits",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        consumer.assign([TopicPartition(topic, number, 0) for number in range(4)])
        try:
            while not self._stop.is_set():
                # First the topic, then the store: what was committed by then must be in it.
                for message in consumer.consume(500, PAUSE_S):
                    if message.error() is None:
                        self._take_note(message)
                try:
                    self._look(client)
                except (redis.RedisError, redis.exceptions.RedisClusterException):
                    time.sleep(PAUSE_S)
        finally:
            consumer.close()
            client.close()

    def _take_note(self, message: Message) -> None:
        key, value = message.key(), message.value()
        number = schema_id(value)
        if key is None or value is None or number is None:
            return  # a deletion does not say its version
        if number not in self._schemas:
            schema = self._surroundings.registry.schemas([number])[number]
            assert isinstance(schema, ParsedSchema)
            self._schemas[number] = schema.schema
        self._committed[key.decode()] = decode(value, self._schemas)["version"]

    def _look(self, client: Any) -> None:
        pipeline = client.pipeline(transaction=False)
        for listing_id in self._listing_ids:
            pipeline.hgetall(f"{self._surroundings.redis_prefix}{{{listing_id}}}")
        for listing_id, held in zip(self._listing_ids, pipeline.execute(), strict=True):
            committed = self._committed.get(listing_id)
            if not held:
                if committed is not None or listing_id in self._before:
                    self._note("store trails", listing_id, "nothing is stored of what was committed")
                continue
            if committed is not None and int(held["_version"]) < committed:
                self._note("store trails", listing_id, f"version {held['_version']}, committed: {committed}")
            deleted = "_deleted" in held
            now = (int(held["_version"]), int(held.get("_model_epoch", 0)), deleted)
            before = self._before.get(listing_id, now)
            if now[0] < before[0] or (now[0] == before[0] and before[2] and not deleted):
                self._note("store went back", listing_id, f"{before}, then {now}")
            if deleted != (set(held) == {"_version", "_deleted"}) or not (deleted or "_content" in held):
                self._note("half a listing", listing_id, str(sorted(held)))
            self._before[listing_id] = now
        self.looks += 1

    def _note(self, kind: str, listing_id: str, found: str) -> None:
        self.violations.append(Violation(kind, listing_id, found))
