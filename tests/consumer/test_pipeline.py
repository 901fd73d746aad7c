"""A listing's journey, on fakes: each offset gets one answer, in order, and a bad record does not hold up the others."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.batches import split_by_cost
from consumer.inference import Arrays
from consumer.records import Enriched, OutputRecord, Tombstone
from model.bundle import Bundle
from model.listing import Listing
from model.signature import content_hash
from tests.consumer.journey import Journey, event_of
from tests.examples import (
    INPUT_TOPIC,
    a_change_event,
    a_chinese_novel,
    a_decompression_bomb,
    a_deletion,
    a_jpeg_cover,
    a_numbered_book,
    a_truncated_jpeg,
    a_used_hardback,
    an_input_record,
)
from tests.fake_model import fingerprint
from tests.fakes import ENRICHED_TOPIC, away, only

MakeJourney = Callable[..., Journey]


def with_cover(listing: Listing, cover: bytes) -> Listing:
    return replace(listing, cover=cover)


def as_json(state: Enriched) -> dict[str, object]:
    """A stored state's predictions as the enriched event has them."""
    return {
        task: {
            "labels": [{"label": x.label, "confidence": x.confidence} for x in one.labels or ()],
            **dict(zip(("value", "low", "high"), one.values, strict=True)),
        }
        for task, one in state.predictions.items()
    }


# ── each offset gets one answer ─────────────────────────────────────────────────────────────────────────────────


def test_a_listing_is_answered_on_the_enriched_topic_and_in_the_store(journey: MakeJourney) -> None:
    """A change becomes one event and one entry in the store, and both say the same; key, headers and partition are kept."""
    one = journey(partitions=3)
    book = with_cover(a_used_hardback(), a_jpeg_cover())
    one.kafka.publish(a_change_event(book, headers=(("traceparent", b"00-1-2-01"),)), partition=2)
    one.run()
    output = only(one.kafka.outputs)
    headers = (("traceparent", b"00-1-2-01"), ("enriched.source", b"catalogue.listings/2/0"))
    assert output == OutputRecord(ENRICHED_TOPIC, b"bd-1", output.value, headers, 2)
    state = one.store.states["bd-1"]
    assert isinstance(state, Enriched)
    assert (state.version, state.content, state.model, state.model_epoch) == (17, content_hash(book), "tiny@1.0.0", 3)
    assert list(state.predictions) == ["department", "topics", "price_band", "page_count"], "the publisher is known"
    event = event_of(output)
    assert (event["outcome"], event["version"], event["predictions"]) == ("PREDICTED", 17, as_json(state))


def test_answers_go_to_any_partition_where_the_topics_differ(journey: MakeJourney) -> None:
    """Where the enriched topic has another number of partitions, the client chooses by the key."""
    one = journey(partitions=2, keep_partition=False)
    one.kafka.publish(a_change_event(a_used_hardback()), partition=1)
    assert only(one.run().kafka.outputs).partition is None


def test_every_offset_is_answered_in_order(journey: MakeJourney) -> None:
    """Batches finish in the order in which they were read, and each offset of each partition has one answer."""
    one = journey(partitions=3, batch={"max_records": 4})
    for number in range(40):
        one.kafka.publish(a_change_event(a_numbered_book(number)), partition=number % 3)
    one.run()
    assert one.kafka.answered() == one.kafka.all_positions()
    for partition in range(3):
        offsets = [offset for found, offset, _ in one.said() if found == partition]
        assert offsets == sorted(offsets)


def test_a_later_batch_does_not_overtake(journey: MakeJourney) -> None:
    """A batch that waits for the registry is finished before one that was read later and waits for nothing."""
    one = journey(batch={"max_records": 1})
    one.kafka.publish(a_change_event(a_used_hardback()), a_deletion("db-2", version=3), a_change_event(a_numbered_book(1)))
    one.schemas.failures.next(*away("schema_registry", 3))
    assert one.run().said() == [(0, 0, "PREDICTED v17"), (0, 1, "deleted"), (0, 2, "PREDICTED v1")]


def test_the_committed_offset_is_the_one_to_resume_at(journey: MakeJourney) -> None:
    """What is committed for each partition is the last answered offset plus one."""
    one = journey(partitions=3)
    for number in range(5):
        one.kafka.publish(a_change_event(a_numbered_book(number)), partition=number % 2)
    one.run()
    assert one.kafka.offsets == {(INPUT_TOPIC, 0): 3, (INPUT_TOPIC, 1): 2, (INPUT_TOPIC, 2): 0}


def test_a_batch_of_dead_letters_moves_the_offset_too(journey: MakeJourney) -> None:
    """A batch of which nothing can be read is answered with dead letters, and its offsets are committed."""
    one = journey()
    one.kafka.publish(an_input_record(b"{}"), an_input_record(b""))
    one.run()
    assert one.said() == [(0, 0, "dead letter: decode"), (0, 1, "dead letter: decode")]
    assert one.store.written in ([], [[]])


# ── versions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_versions_in_one_batch_collapse(journey: MakeJourney) -> None:
    """Of several versions in a batch the newest alone is inferred and stored, and each offset still has its answer."""
    one = journey()
    books = [a_numbered_book(7, version=version, listing_id="x") for version in (1, 3, 2)]
    one.kafka.publish(*map(a_change_event, books))
    one.run()
    assert one.said() == [(0, 0, "SUPERSEDED v3"), (0, 1, "PREDICTED v3"), (0, 2, "SUPERSEDED v3")]
    assert (one.backend.batches, [[state.version for state in states] for states in one.store.written]) == ([1], [[3]])


def test_a_change_that_the_model_does_not_see_reuses_the_prediction(journey: MakeJourney) -> None:
    """A new price is answered with the stored prediction, under the new version, without the model."""
    one = journey(batch={"max_records": 1, "max_in_flight": 1})
    one.kafka.publish(a_change_event(a_used_hardback(version=1)), a_change_event(a_used_hardback(version=2, price=1.0)))
    one.run()
    assert one.said() == [(0, 0, "PREDICTED v1"), (0, 1, "REUSED v2")]
    assert one.backend.batches == [1]
    first, second = (event_of(output)["predictions"] for output in one.kafka.outputs)
    assert first == second


def test_an_older_version_does_not_overwrite_the_store(journey: MakeJourney) -> None:
    """An update, and a deletion, that are older than the store's entry are answered with that entry and change nothing."""
    one = journey()
    newer = Enriched("bd-1", 99, "c0ffee", {}, "books@9.9.9", 9)
    one.store.states = {"bd-1": newer, "db-2": Tombstone("db-2", 9)}
    one.kafka.publish(a_change_event(a_used_hardback()), a_change_event(a_chinese_novel()), a_deletion("bd-1", version=5))
    one.run()
    assert one.said() == [(0, 0, "SUPERSEDED v99"), (0, 1, "deleted"), (0, 2, "SUPERSEDED v99")]
    assert one.store.states == {"bd-1": newer, "db-2": Tombstone("db-2", 9)}
    assert one.metric("enricher_stale_writes_total") == 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_deletion_stands_against_an_update_of_its_version(journey: MakeJourney, batch_size: int) -> None:
    """A deletion wins over an update of the same version that comes after it, in the same batch as in the next."""
    one = journey(batch={"max_records": batch_size, "max_in_flight": 1})
    one.kafka.publish(a_deletion("bd-1", version=17), a_change_event(a_used_hardback(version=17)))
    one.run()
    assert one.store.states == {"bd-1": Tombstone("bd-1", 17)}
    assert one.said() == [(0, 0, "deleted"), (0, 1, "deleted")]


# ── bad records ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_broken_cover_does_not_hold_up_its_batch(journey: MakeJourney) -> None:
    """A truncated JPEG and a decompression bomb get dead letters with their reason; the records around them go on."""
    one = journey()
    covers = [a_jpeg_cover(), a_truncated_jpeg(), a_decompression_bomb(), b"GIF89a", b"x" * 1_000_001, b""]
    for number, cover in enumerate(covers):
        one.kafka.publish(a_change_event(with_cover(a_numbered_book(number), cover)))
    one.run()
    kinds = ["PREDICTED v1", *["dead letter: cover"] * 4, "PREDICTED v1"]
    assert sorted(one.said()) == [(0, number, kind) for number, kind in enumerate(kinds)]
    reasons = [(dict(letter.headers)["dlq.reason"] or b"").decode() for letter in one.kafka.dead_letters()]
    assert [reason[:40] for reason in reasons] == [
        "cover: the image is broken or truncated ",
        "cover: the image is 100000 x 100000 pixe",
        "cover: expected a JPEG, PNG or WebP imag",
        "cover: at most 1000000 bytes (covers.max",
    ]


def test_the_next_older_version_takes_the_place_of_a_rejected_one(journey: MakeJourney) -> None:
    """Where the newest version of a listing is rejected, the next newest of its batch is predicted and stored."""
    one = journey()
    broken = [a_truncated_jpeg(), a_decompression_bomb()]
    one.kafka.publish(
        a_change_event(a_numbered_book(1, version=1, listing_id="x")),
        a_change_event(a_numbered_book(2, version=2, listing_id="x")),
        a_change_event(with_cover(a_numbered_book(3, version=3, listing_id="x"), broken[0])),
        a_change_event(with_cover(a_numbered_book(4, version=4, listing_id="x"), broken[1])),
        a_change_event(a_numbered_book(5)),
    )
    one.run()
    assert sorted(one.said()) == [
        (0, 0, "SUPERSEDED v2"),
        (0, 1, "PREDICTED v2"),
        (0, 2, "dead letter: cover"),
        (0, 3, "dead letter: cover"),
        (0, 4, "PREDICTED v1"),
    ]
    state = one.store.states["x"]
    assert isinstance(state, Enriched)
    assert (state.version, state.content) == (2, content_hash(a_numbered_book(2)))


def test_a_deletion_takes_the_place_of_a_rejected_version(journey: MakeJourney) -> None:
    """A deletion stands where the update after it was rejected."""
    one = journey()
    one.kafka.publish(a_deletion("x", version=1), a_change_event(with_cover(a_numbered_book(3, version=3, listing_id="x"), b"?")))
    one.run()
    assert one.said() == [(0, 0, "deleted"), (0, 1, "dead letter: cover")]
    assert one.store.states == {"x": Tombstone("x", 1)}


def test_a_thousand_broken_versions_of_one_listing_are_a_thousand_dead_letters(journey: MakeJourney) -> None:
    """A batch may hold any number of broken versions of one listing."""
    one = journey(batch={"max_records": 1_200}, delivery={"max_reject_share": 1})
    for version in range(1_200):
        one.kafka.publish(a_change_event(with_cover(Listing("x", version), b"broken")))
    one.run(deadline_s=30)
    assert one.kafka.answered() == one.kafka.all_positions()
    assert (len(one.kafka.dead_letters()), one.store.states) == (1_200, {})


@pytest.mark.parametrize("what", ["poison", "nan", "infinite"])
def test_a_record_that_the_model_cannot_take_is_rejected_alone(journey: MakeJourney, tiny_bundle: Bundle, what: str) -> None:
    """A record that makes a batch fail, or whose outputs are no numbers, is found and rejected; all others go through."""
    one = journey()
    bad = {3, 11}
    getattr(one.backend, what).update(fingerprint(tiny_bundle, a_numbered_book(number)) for number in bad)
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(13)))
    one.run()
    expected = [(0, n, "dead letter: inference" if n in bad else "PREDICTED v1") for n in range(13)]
    assert sorted(one.said()) == expected
    assert set(one.store.states) == {f"book-{n}" for n in range(13) if n not in bad}


def test_predictions_do_not_depend_on_the_batch(journey: MakeJourney, tiny_bundle: Bundle) -> None:
    """A record is answered the same alone, in a batch, and in a batch that was halved because of another record."""
    answers = []
    for size, poison in ((1, False), (9, False), (9, True)):
        one = journey(batch={"max_records": size})
        if poison:
            one.backend.poison.add(fingerprint(tiny_bundle, a_numbered_book(8)))
        one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(9)))
        one.run()
        answers.append({output.key: event_of(output)["predictions"] for output in one.kafka.enriched()[:8]})
    assert answers[0] == answers[1] == answers[2]


# ── bounds ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_number_of_batches_in_flight_is_bounded(journey: MakeJourney) -> None:
    """While the backend is busy no more than `max_in_flight` batches are read."""
    one = journey(batch={"max_records": 2, "max_in_flight": 3})
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(50)))
    one.backend.released.clear()
    rounds: list[int] = []

    def looked_often() -> bool:
        rounds.append(sum(map(len, one.source.polls)))
        if len(rounds) == 20:
            one.backend.released.set()
        return one.kafka.is_done()

    one.run(looked_often)
    assert max(rounds[:20]) == 6
    assert one.kafka.answered() == one.kafka.all_positions()


def test_a_poll_that_is_cut_by_cost_stays_within_the_bound(journey: MakeJourney) -> None:
    """Each part is a batch: no more than `max_in_flight` of them are on their way, and all are answered in order."""
    one = journey(batch={"max_records": 20, "max_cost": 1, "max_in_flight": 2})
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(20)))
    most: list[float] = []
    infer = one.backend.infer

    def noted(inputs: Arrays) -> Any:
        most.append(len(one.pipeline._in_flight))
        return infer(inputs)

    one.backend.infer = noted  # type: ignore[method-assign]
    one.run()
    assert max(most) <= 2
    assert one.kafka.answered() == one.kafka.all_positions()


sizes = st.lists(st.none() | st.integers(0, 30), max_size=30)


@given(sizes=sizes, cost_max=st.integers(1, 40))
def test_a_batch_is_cut_by_cost(sizes: list[int | None], cost_max: int) -> None:
    """Cutting keeps all records in order; no part is empty, too costly (unless one record alone) or smaller than it must be."""
    records = [an_input_record(None if size is None else bytes(size), offset=n) for n, size in enumerate(sizes)]
    parts = split_by_cost(records, cost_max)
    assert [record for part in parts for record in part] == records
    costs = [[len(record.value or b"") for record in part] for part in parts]
    assert all(len(part) == 1 or (part and sum(part) <= cost_max) for part in costs)
    assert all(sum(part) + following[0] > cost_max for part, following in pairwise(costs))


# ── transactions ────────────────────────────────────────────────────────────────────────────────────────────────


def test_batches_share_a_transaction(journey: MakeJourney) -> None:
    """What is answered within `transaction_ms` is one transaction; before its end readers see nothing of it."""
    one = journey(batch={"max_records": 1}, delivery={"transaction_ms": 30_000})
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(5)))
    visible: list[int] = []

    def all_sent() -> bool:
        visible.append(len(one.kafka.outputs))
        return len(one.delivery.sends) == 5

    one.run(all_sent)
    assert set(visible) == {0}
    assert [len(transaction) for transaction in one.kafka.committed] == [5]


def test_a_transaction_ends_in_time_when_nothing_follows(journey: MakeJourney) -> None:
    """An answer is committed within `transaction_ms` though no record comes after it."""
    one = journey(delivery={"transaction_ms": 20})
    one.kafka.publish(a_change_event(a_used_hardback()))
    seen_before_stop: list[bool] = []

    def committed() -> bool:
        seen_before_stop.append(one.kafka.is_done())
        return seen_before_stop[-1]

    one.run(committed)
    assert seen_before_stop[-1]
    assert one.metric("enricher_transactions_total", result="committed") == 1


def test_each_record_is_counted_by_its_outcome(journey: MakeJourney) -> None:
    """The metrics count predicted, reused, superseded and deleted records and dead letters."""
    one = journey(batch={"max_records": 1, "max_in_flight": 1})
    one.kafka.publish(
        a_change_event(a_used_hardback(version=5)),
        a_change_event(a_used_hardback(version=6)),
        a_change_event(a_used_hardback(version=4)),
        a_deletion("bd-1", version=7),
        an_input_record(b"{}"),
    )
    one.run()
    counts = {
        outcome: one.metric("enricher_records_total", outcome=outcome)
        for outcome in ("predicted", "reused", "superseded", "deleted", "dead_letter")
    }
    assert counts == {"predicted": 1, "reused": 1, "superseded": 1, "deleted": 1, "dead_letter": 1}
    assert one.metric("enricher_dead_letters_total", stage="decode", reason="framing") == 1
    assert one.metric("enricher_reject_share") == 1 / 1_000
    assert one.metric("enricher_reject_share_max") == 0.5
