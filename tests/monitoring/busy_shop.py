"""Seven minutes in which happens what the dashboard shows: a shop's events, a silent Redis, rubbish, another model."""

import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumer.publish import Publisher
from consumer.settings import ModelSettings
from model.bundle import MANIFEST, Bundle
from model.dataset import read_rows
from model.evaluate import open_session, reference_shares
from tests.benchmarks.listings import DATA, SETS, real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.consumer.cover_server import CoverServer
from tests.faults.bundles import point
from tests.infrastructure.servers import free_port
from tests.journey.prometheus_server import PrometheusServer
from tests.journey.publishing import framed, send_raw
from tests.journey.running import RunningService, Surroundings, reader_of

Reference = dict[str, tuple[float, ...]]

SCRAPE_S = 5
_SECONDS, _RECORDS_PER_S, _TICK_S = 420, 80, 0.1
_LISTINGS = 24_000
_REDIS_SILENT_MS = 25_000


@dataclass(frozen=True, slots=True)
class Recording:
    """Where Prometheus answers, and from when to when it saw something, as Unix time."""

    prometheus_url: str
    from_ms: int
    to_ms: int


@contextmanager
def recorded(prometheus: str) -> Iterator[Recording]:
    """Two replicas on a real Kafka, registry and Redis, watched by Prometheus, which answers until this is left.

    Args:
        prometheus: the program.
    Raises: UnavailableError: a server cannot be had here.
    """
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        reference = _reference()
        old, new = (
            _bundle(folder / name, version=name, epoch=at, reference=reference) for at, name in enumerate(("1.0.0", "1.1.0"))
        )
        point(pointer := folder / "pointer.toml", old)
        surroundings = opened.enter_context(own_surroundings("shop:"))
        opened.callback(surroundings.close)
        covers = opened.enter_context(closing(CoverServer()))
        surroundings.overrides |= {
            "COVERS__FETCH": "true",
            "COVERS__ALLOWED_HOSTS": f"127.0.0.1:{covers.port}",
            "COVERS__ALLOWED_NETWORKS": "127.0.0.0/8",
            "MODEL__POINTER": str(pointer),
            "KAFKA__PROPERTIES": json.dumps({"statistics.interval.ms": SCRAPE_S * 1000}),
        }

        ports = [free_port(), free_port()]  # as late as can be: until a replica listens, anybody may take its port

        def start(port: int) -> RunningService:
            service = opened.enter_context(RunningService(surroundings, HTTP__PORT=str(port)))

            def tell(kind: type[BaseException] | None, *_: object) -> None:
                if kind is not None:
                    print(f"a replica's log ends:\n{service.log()[-2_500:]}", file=sys.stderr)

            opened.push(tell)
            return service

        start(ports[0]).wait_ready()
        watching = opened.enter_context(PrometheusServer(prometheus, service_ports=ports, every_s=SCRAPE_S))
        redis = opened.enter_context(closing(reader_of(surroundings.redis_url)))
        shop = _Shop(surroundings, covers)
        from_ms = time.time_ns() // 1_000_000
        shop.work(
            {
                90: lambda: start(ports[1]),
                180: lambda: redis.client_pause(_REDIS_SILENT_MS),
                270: shop.send_rubbish,
                340: lambda: point(pointer, new),
            }
        )
        yield Recording(watching.url, from_ms, time.time_ns() // 1_000_000)


class _Shop:
    """Real listings, their prices and texts as they change, late events, deletions, covers by URL, now and then rubbish."""

    def __init__(self, surroundings: Surroundings, covers: CoverServer) -> None:
        self._surroundings = surroundings
        self._publisher = Publisher(surroundings.settings(), surroundings.registry)
        covers.answers |= {f"/{number}.jpg": covers.answers["/cover.jpg"] for number in range(900)}
        self._covers = [covers.url(f"/{number}.jpg", "127.0.0.1") for number in range(1_000)]  # of which a tenth is gone
        self._random = random.Random(1)
        self._new = real_listings(_LISTINGS)
        self._random.shuffle(self._new)  # they come set by set
        self._known: list[dict[str, Any]] = []

    def work(self, events: dict[int, Callable[[], object]]) -> None:
        """Sends until the time is up; `events` are what else happens, by the second at which it does."""
        started, due = time.monotonic(), dict(events)
        while (passed := time.monotonic() - started) < _SECONDS:
            for second in [second for second in due if passed >= second]:
                due.pop(second)()
            for _ in range(round(_RECORDS_PER_S * _TICK_S)):
                self._send_one()
            time.sleep(_TICK_S)
        self._publisher.flush()

    def send_rubbish(self) -> None:
        """A producer's mistake: 40 records that are no Avro, and 20 of a schema that nobody registered."""
        for number in range(60):
            send_raw(self._surroundings, f"bad-{number}".encode(), b"no Avro" if number % 3 else framed(10**6, b""))

    def _send_one(self) -> None:
        chance = self._random.random()
        if chance < 0.6 or not self._known:
            listing = self._new.pop()
            if chance < 0.15:
                listing["cover_url"] = self._random.choice(self._covers)
            self._known.append(listing)
            self._publisher.publish(listing)
            return
        listing = self._random.choice(self._known)
        version = listing["version"]
        if chance < 0.63:
            self._publisher.publish({**listing, "version": version - 1, "title": "An earlier title"})
        elif chance < 0.68:
            self._known.remove(listing)
            self._publisher.delete(listing["listing_id"], version + 1)
        elif chance < 0.685:
            self._publisher.publish({**listing, "version": version + 1, "title": ""})
        else:  # a new price; in one of three cases a new title, too
            listing |= {"version": version + 1, "price": round(self._random.uniform(3, 60), 2), "currency": "USD"}
            if chance < 0.8:
                listing["title"] = f"{listing['title']} ({version + 1})"
            self._publisher.publish(listing)


def _bundle(target: Path, *, version: str, epoch: int, reference: Reference) -> Path:
    """The shipped bundle under another name, with a reference."""
    shutil.copytree(ModelSettings().bundle, target)
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    text = json.dumps({**manifest, "version": version, "epoch": epoch, "reference": reference}, ensure_ascii=False).encode()
    (target / MANIFEST).write_bytes(text)
    (target / f"{MANIFEST}.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n", encoding="ascii")
    return target


def _reference() -> Reference:
    """The shipped bundle's; where it has none what `model train` would have written into it, if the data sets are at hand."""
    bundle = Bundle.load(ModelSettings().bundle)
    if bundle.manifest.reference or not DATA.is_dir():
        return bundle.manifest.reference
    rows = read_rows([DATA / name for name in SETS], part="valid", settings=bundle.manifest.features, limit=1_500)
    return reference_shares(open_session(bundle.graph_path), bundle.extractor(), rows, bundle.manifest.tasks)
