"""Covers by URL over a real Kafka, registry and Redis, from a real server that answers, refuses and hangs."""

from collections.abc import Iterator
from typing import Any

import pytest

from consumer.records import CoverUse, Enriched
from tests.consumer.cover_server import CoverServer, in_drops
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, decode_enriched, wait_for_answers

pytestmark = pytest.mark.integration

TIMEOUT_MS = 1_000


@pytest.fixture
def server() -> Iterator[CoverServer]:
    made = CoverServer()
    yield made
    made.close()


def a_book(number: int, url: str | None = None, *, version: int = 1) -> dict[str, Any]:
    """One of many; its cover, if any, is to be fetched."""
    return {"listing_id": f"b-{number}", "version": version, "title": f"Volume {number}", "cover_url": url}


def fetching(surroundings: Surroundings, *hosts: str) -> None:
    """The service's settings."""
    surroundings.overrides |= {
        "COVERS__FETCH": "true",
        "COVERS__ALLOWED_HOSTS": ",".join(hosts),
        "COVERS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "COVERS__TIMEOUT_MS": str(TIMEOUT_MS),
    }


def test_each_listing_is_answered_with_its_cover_or_without(surroundings: Surroundings, server: CoverServer) -> None:
    """USED, MISSING and NONE stand in the event and in the store; no cover is a dead letter."""
    fetching(surroundings, f"127.0.0.1:{server.port}")
    urls = [
        *(server.url("/cover.jpg", "127.0.0.1"), server.url("/gone", "127.0.0.1"), "http://169.254.169.254/latest/", None),
        server.url("/cover.jpg", "localhost"),
    ]
    publish(surroundings, [a_book(number, url) for number, url in enumerate(urls)])
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, len(urls))
        assert service.terminate() == 0
    assert dead == []
    expected = {"b-0": "USED", "b-1": "MISSING", "b-2": "MISSING", "b-3": "NONE", "b-4": "MISSING"}
    assert {event["listing_id"]: event["cover"] for event in decode_enriched(surroundings, enriched) if event} == expected
    for listing_id, state in surroundings.stored(list(expected)).items():
        assert isinstance(state, Enriched)
        assert state.cover is CoverUse(expected[listing_id])
        assert (state.content == "") == (state.cover is CoverUse.MISSING)
    assert set(server.requests) == {"/cover.jpg", "/gone"}


def test_a_dead_host_does_not_slow_the_stream(surroundings: Surroundings, server: CoverServer) -> None:
    """One listing in ten names a cover at a server that never answers: 1,000 are done after a few deadlines, all in order."""
    fetching(surroundings, f"127.0.0.1:{server.port}")
    server.answers |= {f"/{n}": in_drops(b"", b"", every_s=0.1, until=server.stopping) for n in range(1_000)}
    books = [a_book(n, server.url(f"/{n}", "127.0.0.1") if n % 10 == 0 else None) for n in range(1_000)]
    with RunningService(surroundings, BATCH__MAX_RECORDS="20") as service:  # 50 batches, each with such listings
        service.wait_ready()
        publish(surroundings, books)
        enriched, dead = wait_for_answers(surroundings, len(books))
        assert service.terminate() == 0
        log = service.log()
    assert dead == []
    events = [event for event in decode_enriched(surroundings, enriched) if event]
    assert {event["cover"] for event in events if int(event["listing_id"][2:]) % 10 == 0} == {"MISSING"}
    for partition in range(4):
        offsets = [record.source[1] for record in enriched if record.partition == partition]
        assert offsets == sorted(offsets)
    stamps = [record.timestamp_ms for record in enriched]
    took_s = (max(stamps) - min(stamps)) / 1000
    print(f"1,000 listings, 100 of them at a dead host: {took_s:.1f} s")
    assert took_s < 10 * TIMEOUT_MS / 1000, f"a deadline for each of 50 batches would be 50 s\n{log[-2000:]}"
