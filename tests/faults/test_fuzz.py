"""Broken events are enriched or rejected with a reason, and nothing else: in process, and through the whole service."""

import os

import pytest
from confluent_kafka import Producer

from consumer.schema_registry import ParsedSchema
from consumer.schemas import LISTING, LISTING_ENVELOPE
from tests.examples import ENVELOPE_SCHEMA, LISTING_SCHEMA
from tests.faults.fuzz import MEGABYTES_MAX, SECONDS_MAX, fuzz
from tests.faults.mutate import Mutator
from tests.faults.replicas import Replica
from tests.journey.running import Surroundings, read_topic, wait_for_answers

THROUGH = int(os.environ.get("FUZZ_THROUGH", "3000"))


def test_a_case_comes_again_with_its_seed_and_number() -> None:
    """What failed once can be looked at: the same bytes from another mutator."""
    one, two = (Mutator(7, LISTING_SCHEMA, ENVELOPE_SCHEMA) for _ in range(2))
    assert [one.case(number) for number in range(50)] == [two.case(number) for number in range(50)]
    assert one.case(0) != Mutator(8, LISTING_SCHEMA, ENVELOPE_SCHEMA).case(0)


def test_broken_events_become_features_or_rejects() -> None:
    """5,000 of them, none slower or larger than is borne; every stage that can reject is met, and so is the way through."""
    found = fuzz(1, 0, 5_000)
    assert found.failures == []
    assert sum(found.outcomes.values()) == 5_000
    assert {"enriched", "deleted", "rejected: decode", "rejected: cover"} <= set(found.outcomes)
    assert found.slowest[0] < SECONDS_MAX
    assert found.megabytes < MEGABYTES_MAX


@pytest.mark.integration
@pytest.mark.short_form
def test_broken_events_go_through_the_whole_service(surroundings: Surroundings, seed: int) -> None:
    """Each input offset is answered once, by an enriched record or a dead letter with a reason, and the process stays up."""
    topic = surroundings.topics.input
    mutator = Mutator(seed, *(registered(surroundings, topic, text) for text in (LISTING, LISTING_ENVELOPE)))
    producer = Producer({"bootstrap.servers": surroundings.bootstrap_servers, "compression.type": "lz4"})
    with Replica(surroundings, DELIVERY__MAX_REJECT_SHARE="1", BATCH__MAX_RECORDS="256", LOG__LEVEL="error") as service:
        for number in range(THROUGH):
            case = mutator.case(number)
            producer.produce(topic, case.value, case.key, headers=list(case.headers))
            while producer.poll(0) or len(producer) > 5_000:
                producer.poll(0.05)
        assert producer.flush(60) == 0
        enriched, dead = wait_for_answers(surroundings, THROUGH, deadline_s=60 + THROUGH / 100)
        assert service.is_running()
        assert service.terminate() == 0
    answered = [answer.source for answer in enriched]
    answered += [(int(letter.header("dlq.partition") or -1), int(letter.header("dlq.offset") or -1)) for letter in dead]
    assert sorted(answered) == [(one.partition, one.offset) for one in read_topic(surroundings.bootstrap_servers, topic)]
    assert all(letter.header("dlq.reason") and letter.header("dlq.stage") for letter in dead)
    print(f"fuzz through the service: {THROUGH} events, {len(enriched)} enriched, {len(dead)} dead letters, seed {seed}")


def registered(surroundings: Surroundings, topic: str, text: str) -> ParsedSchema:
    """A schema under the id that this registry gives it; the envelope is no version of the listing, so it has its own subject."""
    schema_id = surroundings.registry.register(f"{topic}-{len(text)}-value", text)
    schema = surroundings.registry.schemas([schema_id])[schema_id]
    assert isinstance(schema, ParsedSchema)
    return schema
