"""A shop at work: updates, late updates, deletions and rubbish for a few listings, all from one seed."""

import random
import threading
import time
from typing import Any

from confluent_kafka import Producer

from consumer.publish import Publisher
from tests.journey.running import Surroundings

WORDS = ("stars", "time", "history", "garden", "war", "cookbook", "love", "physics", "island", "letters", "winter", "music")
LISTINGS = 60
TICK_S = 0.1


class Load:
    """Publishes until it is stopped. Use as a context manager; leaving it waits until all is on the broker.

    Of a hundred records about eight delete, eight are late (an older version, sent anew), ten change nothing that the model
    sees, one repeats the last version with another text, and one is no Avro.
    """

    def __init__(self, surroundings: Surroundings, *, seed: int, records_per_s: int = 120, late: bool = True) -> None:
        self.sent = 0
        self._surroundings = surroundings
        self._random = random.Random(seed)
        self._per_tick = max(1, int(records_per_s * TICK_S))
        self._late = late
        self._versions: dict[str, int] = {}
        self._titles: dict[str, str] = {}
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> "Load":
        self._publisher = Publisher(self._surroundings.settings(), self._surroundings.registry)
        self._raw = Producer({"bootstrap.servers": self._surroundings.bootstrap_servers, "log_level": 0})
        self.begun_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends no more; what was sent is on the broker. May be called again."""
        self._stop.set()
        self._thread.join(timeout=90)
        assert not self._thread.is_alive(), "the shop could not send"
        if self._failure is not None:
            raise self._failure

    def listing_ids(self) -> list[str]:
        """All that can have been sent."""
        return [f"book-{number}" for number in range(LISTINGS)]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for _ in range(self._per_tick):
                    self._send_one()
                self._stop.wait(TICK_S)
            self._publisher.flush()
            assert self._raw.flush(30) == 0
        except (AssertionError, RuntimeError, ValueError) as error:
            self._failure = error

    def _send_one(self) -> None:
        chance, listing_id = self._random.random(), self._random.choice(self.listing_ids())
        version = self._versions.get(listing_id, 0)
        self.sent += 1
        if chance < 0.01:
            key = f"bad-{self._random.randrange(5)}".encode()
            self._raw.produce(self._surroundings.topics.input, key=key, value=b"no Avro " + bytes([self._random.randrange(256)]))
            self._raw.poll(0)
            return
        if chance < 0.09 and version > 1 and self._late:
            self._publish(listing_id, self._random.randrange(1, version), self._title())
            return
        if chance < 0.10 and version:
            self._publish(listing_id, version, self._title())
            return
        self._versions[listing_id] = version + 1
        if chance < 0.18:
            self._publisher.delete(listing_id, version + 1)
            return
        title = self._titles.get(listing_id, "") if chance < 0.28 else ""
        self._titles[listing_id] = title or self._title()
        self._publish(listing_id, version + 1, self._titles[listing_id])

    def _publish(self, listing_id: str, version: int, title: str) -> None:
        price = round(self._random.uniform(3, 60), 2)
        listing: dict[str, Any] = {"listing_id": listing_id, "version": version, "title": title, "price": price}
        self._publisher.publish({**listing, "currency": "USD", "language": "en"})

    def _title(self) -> str:
        return " ".join(self._random.choices(WORDS, k=5))


def pause_between(chance: random.Random, low_s: float, high_s: float) -> None:
    """Sleeps for a time that the seed decides."""
    time.sleep(chance.uniform(low_s, high_s))
