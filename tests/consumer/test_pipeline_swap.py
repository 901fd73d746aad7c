"""Models take over while batches are on their way: no batch is mixed, none is lost, and the store sees epochs rise."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from consumer.errors import TransactionAborted
from consumer.inference import Arrays
from consumer.records import Enriched, InputRecord, ModelIdentity, Outcome
from consumer.serving import ServedModel
from model.bundle import Bundle
from tests.consumer.journey import Journey, a_served_model, event_of
from tests.examples import a_change_event, a_deletion, a_numbered_book
from tests.fake_model import FakeBackend, fingerprints

MakeJourney = Callable[..., Journey]


class SignedBackend(FakeBackend):
    """Says which model it belongs to: `page_count` is its number, whatever the listing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def infer(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        outputs = super().infer(inputs)
        outputs["page_count"][:] = self.number
        return outputs


def signed_model(bundle: Bundle, number: int, epoch: int) -> ServedModel:
    model = a_served_model(bundle, SignedBackend(number))
    return replace(model, identity=ModelIdentity("tiny", f"{number}.0.0", epoch))


def updates(count: int, listings: int) -> list[InputRecord]:
    """Versions that rise, of a few listings, with a deletion now and then."""
    events = []
    for number in range(count):
        book = replace(a_numbered_book(number % listings), version=number + 1, title=f"Edition {number // (2 * listings)}")
        events.append(a_deletion(book.listing_id, version=number + 1) if number % 17 == 16 else a_change_event(book))
    return events


def test_models_swap_under_load(journey: MakeJourney, tiny_bundle: Bundle) -> None:
    """Dozens of takeovers at random moments, half of them back to the former, with aborted transactions in between.

    Each answer's predictions are those of the model that it names, and of its epoch; along each partition epochs do not fall.
    """
    one = journey(partitions=2, batch={"max_records": 5}, delivery={"transaction_ms": 1})
    chance = random.Random(5)
    models = [signed_model(tiny_bundle, number, 0) for number in (1, 2)]
    one.model, epochs, due = models[0], {0: "1.0.0"}, 1

    def perhaps_another() -> ServedModel:
        nonlocal due
        if len(one.store.written) >= due:
            due = len(one.store.written) + chance.randrange(1, 4)
            if chance.random() < 0.2:
                one.delivery.send_failures.next(TransactionAborted("says the test"))
            epoch = len(epochs)
            one.model = replace(models[epoch % 2], identity=replace(models[epoch % 2].identity, epoch=epoch))
            epochs[epoch] = one.model.identity.version
        return one.model

    one.model_for_next = perhaps_another
    for number, event in enumerate(updates(600, 30)):
        one.kafka.publish(event, partition=number % 30 % 2)
    one.run()
    models[0].thread.shutdown()
    models[1].thread.shutdown()
    assert one.kafka.answered() == one.kafka.all_positions()
    assert len(epochs) > 30, "too few takeovers to prove anything"
    seen: dict[int, list[int]] = {0: [], 1: []}
    for output in one.kafka.outputs:
        if output.value is None:
            continue
        event = event_of(output)
        number = int(event["predictions"]["page_count"]["value"])
        assert (event["model_version"], f"{number}.0.0") == (epochs[event["model_epoch"]],) * 2
        if event["outcome"] != Outcome.SUPERSEDED:
            assert output.partition is not None
            seen[output.partition].append(event["model_epoch"])
    for found in seen.values():
        assert found == sorted(found)
        assert len(set(found)) > 10


def test_a_batch_keeps_the_model_that_it_began_with(journey: MakeJourney, tiny_bundle: Bundle) -> None:
    """While a batch is being predicted another model takes over: that batch ends with the old one, the next has the new one."""
    one = journey(batch={"max_records": 1, "max_in_flight": 2})
    new = signed_model(tiny_bundle, 2, 9)

    def take_over() -> None:
        one.model = new

    one.backend.before_infer.append(take_over)
    one.kafka.publish(*(a_change_event(a_numbered_book(number)) for number in range(4)))
    one.run()
    found = [(event["model_version"], event["model_epoch"]) for event in map(event_of, one.kafka.outputs)]
    assert found[0] == ("1.0.0", 3)
    assert found[-1] == ("2.0.0", 9)
    assert found == sorted(found)


def test_the_next_best_version_is_asked_of_the_same_model(journey: MakeJourney, tiny_bundle: Bundle) -> None:
    """Where a batch's newest version breaks the model, the one before it is predicted by that batch's own model."""
    one = journey()
    sound, poison = replace(a_numbered_book(1), version=1), replace(a_numbered_book(1), version=2, title="Poison")
    features = tiny_bundle.extractor().extract([poison], [None]).as_feed()
    one.backend.poison = set(fingerprints(features))

    def take_over() -> None:
        one.model = signed_model(tiny_bundle, 2, 9)

    one.backend.before_infer.append(take_over)
    one.kafka.publish(a_change_event(sound), a_change_event(poison))
    assert one.run().said() == [(0, 0, "PREDICTED v1"), (0, 1, "dead letter: inference")]
    state = one.store.states["book-1"]
    assert isinstance(state, Enriched)
    assert (state.model, state.model_epoch) == ("tiny@1.0.0", 3)


def test_what_a_former_model_said_is_not_reused(journey: MakeJourney, tiny_bundle: Bundle) -> None:
    """After a takeover unchanged content is predicted anew, once; then it is reused again."""
    one = journey(batch={"max_records": 1, "max_in_flight": 1})
    former, new = one.model, signed_model(tiny_bundle, 2, 9)
    one.model_for_next = lambda: new if len(one.store.written) >= 2 else former
    one.kafka.publish(*(a_change_event(replace(a_numbered_book(1), version=version)) for version in (1, 2, 3, 4)))
    one.run()
    new.thread.shutdown()
    assert [words for _, _, words in one.said()] == ["PREDICTED v1", "REUSED v2", "PREDICTED v3", "REUSED v4"]
