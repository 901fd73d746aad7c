"""Covers by URL on a listing's journey: used, missing and tried again; never in the way of listings without one."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from consumer.records import CoverUse, Enriched
from consumer.suspects import Suspects
from model.bundle import Bundle
from model.listing import Listing
from model.signature import content_hash
from tests.consumer.cover_server import CoverServer, a_status, an_answer, in_drops
from tests.consumer.journey import Journey, event_of
from tests.consumer.test_suspects import Court, MarksInMemory
from tests.examples import INPUT_TOPIC, a_change_event, a_jpeg_cover, a_numbered_book, a_used_hardback
from tests.fake_model import fingerprint
from tests.fakes import only

MakeJourney = Callable[..., Journey]


@pytest.fixture
def server() -> Iterator[CoverServer]:
    made = CoverServer()
    yield made
    made.close()


def fetching(server: CoverServer, **settings: Any) -> dict[str, Any]:
    """The section `covers` that fetches from the test's server."""
    networks = ["127.0.0.0/8"]
    return {
        "fetch": True,
        "allowed_hosts": [f"127.0.0.1:{server.port}"],
        "allowed_networks": networks,
        "timeout_ms": 5_000,
    } | settings


def at(server: CoverServer, path: str = "/cover.jpg", listing: Listing | None = None) -> Listing:
    return replace(listing or a_used_hardback(), cover_url=server.url(path, "127.0.0.1"))


def test_a_fetched_cover_gives_the_answer_of_one_that_came_along(server: CoverServer, journey: MakeJourney) -> None:
    """Fetched or sent, the same image makes the same predictions; the event and the store say that it was used."""
    one = journey(covers=fetching(server))
    sent = replace(a_used_hardback("sent"), cover=a_jpeg_cover())
    one.kafka.publish(a_change_event(at(server, listing=a_used_hardback("fetched"))), a_change_event(sent))
    one.run()
    events = {event["listing_id"]: event for event in map(event_of, one.kafka.outputs)}
    assert events["fetched"]["predictions"] == events["sent"]["predictions"]
    assert {event["cover"] for event in events.values()} == {"USED"}
    assert one.metric("enricher_cover_fetches_total", result="fetched") == 1


def test_without_covers_fetch_a_url_is_ignored(server: CoverServer, journey: MakeJourney) -> None:
    """Nothing is asked for, and the content is that of a listing without URL: turning fetch off and on keeps what is stored."""
    one = journey()
    one.kafka.publish(a_change_event(at(server)))
    one.run()
    assert server.requests == []
    assert event_of(only(one.kafka.outputs))["cover"] == "NONE"
    state = one.store.states["bd-1"]
    assert isinstance(state, Enriched)
    assert (state.content, state.cover) == (content_hash(a_used_hardback()), CoverUse.NONE)


def test_bytes_go_before_the_url(server: CoverServer, journey: MakeJourney) -> None:
    """A listing that carries its cover is not fetched for."""
    one = journey(covers=fetching(server))
    one.kafka.publish(a_change_event(replace(at(server), cover=a_jpeg_cover())))
    one.run()
    assert event_of(only(one.kafka.outputs))["cover"] == "USED"
    assert server.requests == []


def test_a_missing_cover_is_no_dead_letter_and_is_tried_again(
    server: CoverServer, journey: MakeJourney, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing is answered as one without cover and flagged; its next change, though the same content, asks once more."""
    monkeypatch.setattr("consumer.cover_fetch.MISSING_AGE_S", 0.0)
    answers = [a_status(404), an_answer(a_jpeg_cover())]
    server.answers["/later"] = lambda connection: answers.pop(0)(connection)
    one = journey(covers=fetching(server), batch={"max_records": 1, "max_in_flight": 1})
    one.kafka.publish(a_change_event(a_used_hardback("coverless")))
    one.kafka.publish(*(a_change_event(at(server, "/later", a_used_hardback(version=version))) for version in (17, 18, 19)))
    one.run()
    coverless, *events = map(event_of, one.kafka.outputs)
    said = [(event["outcome"], event["cover"]) for event in events]
    assert said == [("PREDICTED", "MISSING"), ("PREDICTED", "USED"), ("REUSED", "USED")]
    assert events[0]["predictions"] == coverless["predictions"] != events[1]["predictions"]
    assert answers == []


def test_a_fetched_cover_is_reused_with_its_listing(server: CoverServer, journey: MakeJourney) -> None:
    """A new price at the same URL is answered from the store, without the model and without a fetch."""
    one = journey(covers=fetching(server, cache_bytes=0), batch={"max_records": 1, "max_in_flight": 1})
    one.kafka.publish(a_change_event(at(server)), a_change_event(at(server, listing=a_used_hardback(version=18, price=3.0))))
    one.run()
    events = list(map(event_of, one.kafka.outputs))
    assert [(event["outcome"], event["cover"]) for event in events] == [("PREDICTED", "USED"), ("REUSED", "USED")]
    assert server.requests == ["/cover.jpg"]


def test_another_url_is_another_content(server: CoverServer, journey: MakeJourney) -> None:
    """A listing whose cover moves is predicted anew."""
    server.answers["/new.jpg"] = an_answer(a_jpeg_cover((0, 0, 255)))
    one = journey(covers=fetching(server), batch={"max_records": 1, "max_in_flight": 1})
    one.kafka.publish(a_change_event(at(server)), a_change_event(at(server, "/new.jpg", a_used_hardback(version=18))))
    one.run()
    first, second = map(event_of, one.kafka.outputs)
    assert (first["outcome"], second["outcome"]) == ("PREDICTED", "PREDICTED")
    assert first["predictions"] != second["predictions"]


def test_listings_without_url_do_not_wait(server: CoverServer, journey: MakeJourney) -> None:
    """A server that never answers holds up its own batch for covers.timeout_ms and no other: 200 listings are soon done."""
    server.answers["/never"] = in_drops(b"", b"", every_s=0.02, until=server.stopping)
    one = journey(covers=fetching(server, timeout_ms=500), batch={"max_records": 20})
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(100)))
    one.kafka.publish(a_change_event(at(server, "/never")))
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(100, 200)))
    began_s = time.monotonic()
    one.run()
    assert time.monotonic() - began_s < 2
    assert [event["cover"] for event in map(event_of, one.kafka.outputs)].count("MISSING") == 1
    assert one.kafka.answered() == one.kafka.all_positions()


def test_a_version_that_takes_a_rejected_ones_place_waits_for_nothing(
    server: CoverServer, journey: MakeJourney, tiny_bundle: Bundle
) -> None:
    """A batch waits for covers once: an older version that steps in has its cover only if it is known already."""
    one = journey(covers=fetching(server))
    poison = a_numbered_book(7, version=99, listing_id="bd-1")
    one.backend.poison.add(fingerprint(tiny_bundle, poison))
    one.kafka.publish(a_change_event(at(server)), a_change_event(poison))
    one.run()
    assert server.requests == []
    assert event_of(one.kafka.enriched()[0])["cover"] == "MISSING"
    state = one.store.states["bd-1"]
    assert isinstance(state, Enriched)
    assert state.content == "", "so that the next change tries again"


def test_where_processes_died_no_cover_is_fetched(server: CoverServer, journey: MakeJourney) -> None:
    """The child that tries the suspects fetches nothing: a cover by URL that kills its decoder is missing until they are past."""
    server.answers["/cover.jpg"] = an_answer(a_jpeg_cover())
    marks = MarksInMemory()
    marks.held[(INPUT_TOPIC, 0)] = "0 1 another"
    suspects = Suspects(marks, Court(), crashes_before_trial=2, reach=1)
    one = journey(covers=fetching(server), suspects=suspects, batch={"max_records": 1})
    one.kafka.publish(*(a_change_event(at(server, listing=a_used_hardback(name))) for name in ("suspect", "later")))
    one.run()
    assert {event["listing_id"]: event["cover"] for event in map(event_of, one.kafka.outputs)} == {
        "suspect": "MISSING",
        "later": "USED",
    }
