"""From listings to predictions: covers and features, the backend's pass, and the search for the record that breaks it."""

from dataclasses import replace

import numpy as np
import pytest

from consumer import covers
from consumer.errors import SettingsError
from consumer.inference import InferenceFailed
from consumer.prediction import Predictor, Prepared
from consumer.records import Change, ModelIdentity, Rejected, Stage
from model.bundle import Bundle
from model.features import FeatureExtractor, Features
from model.listing import Listing
from tests.examples import a_jpeg_cover, a_numbered_book, a_truncated_jpeg, an_update
from tests.fake_model import FakeBackend, fingerprint


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def predictor(tiny_bundle: Bundle, backend: FakeBackend) -> Predictor:
    return Predictor(tiny_bundle, backend, cover_bytes_max=100_000)


def updates(count: int) -> list[Change]:
    return [an_update(a_numbered_book(number), offset=number) for number in range(count)]


def test_the_model_is_named_as_its_bundle(predictor: Predictor) -> None:
    """Predictions carry the name, version and epoch of the bundle's manifest."""
    assert predictor.identity == ModelIdentity("tiny", "1.0.0", 3)
    assert str(predictor.identity) == "tiny@1.0.0"


def test_nothing_is_asked_of_an_empty_batch(predictor: Predictor, backend: FakeBackend) -> None:
    """A batch without a listing that the model must see does not reach the backend."""
    prepared, rejected = predictor.prepare([])
    assert (prepared, rejected) == (Prepared([], None), [])
    assert predictor.predict(prepared) == ([], [])
    assert backend.batches == []


def test_a_broken_cover_is_left_out_before_the_model(predictor: Predictor) -> None:
    """Of a batch, listings with a broken cover are rejected and the others prepared, with their own covers."""
    whole = replace(a_numbered_book(0), cover=a_jpeg_cover())
    broken = replace(a_numbered_book(1), cover=a_truncated_jpeg())
    changes = [an_update(whole), an_update(broken, offset=1), an_update(a_numbered_book(2), offset=2)]
    prepared, rejected = predictor.prepare(changes)
    assert prepared.changes == [changes[0], changes[2]]
    assert prepared.features is not None
    assert prepared.features.cover_present.tolist() == [[1.0], [0.0]]
    assert prepared.features.cover.shape == (2, 1, 8, 8)
    assert [(one.record, one.stage) for one in rejected] == [(changes[1].record, Stage.COVER)]


@pytest.mark.parametrize(("size", "poisoned"), [(1, {0}), (2, {1}), (9, {0, 4, 8}), (16, set(range(16))), (7, set())])
def test_a_poisonous_record_is_found_by_halving(
    predictor: Predictor, backend: FakeBackend, tiny_bundle: Bundle, size: int, poisoned: set[int]
) -> None:
    """Records that no batch survives are rejected one by one; the others are answered, in order, as they would be without."""
    changes = updates(size)
    expected, _ = predictor.predict(predictor.prepare([change for n, change in enumerate(changes) if n not in poisoned])[0])
    backend.poison = {fingerprint(tiny_bundle, a_numbered_book(number)) for number in poisoned}
    answered, rejected = predictor.predict(predictor.prepare(changes)[0])
    assert answered == expected
    assert rejected == [Rejected(changes[n].record, Stage.INFERENCE, "poisoned") for n in sorted(poisoned)]


def test_the_search_asks_no_more_than_it_must(predictor: Predictor, backend: FakeBackend, tiny_bundle: Bundle) -> None:
    """One poisonous record among 64 costs one pass for each halving, and one for the rest."""
    backend.poison = {fingerprint(tiny_bundle, a_numbered_book(37))}
    predictor.predict(predictor.prepare(updates(64))[0])
    assert len(backend.batches) <= 1 + 6 + 1


@pytest.mark.parametrize("poisoned", [set(), {0}, {5}, {8}, {0, 3, 8}, set(range(9))])
def test_a_record_that_breaks_the_features_is_found_too(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, poisoned: set[int]
) -> None:
    """Whatever feature code raises costs the record at fault, in the stage "features"; the others' features are unchanged."""
    changes = updates(9)
    whole, _ = predictor.prepare([change for n, change in enumerate(changes) if n not in poisoned])
    truthful, ids = FeatureExtractor.extract, {f"book-{number}" for number in poisoned}

    def breaking(extractor: FeatureExtractor, listings: list[Listing], covers: list[object]) -> Features:
        if any(listing.listing_id in ids for listing in listings):
            raise IndexError("beyond the table")
        return truthful(extractor, listings, covers)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureExtractor, "extract", breaking)
    prepared, rejected = predictor.prepare(changes)
    assert prepared.changes == whole.changes
    assert (prepared.features is None) == (whole.features is None)
    if prepared.features is not None and whole.features is not None:
        for name, array in whole.features.as_feed().items():
            np.testing.assert_array_equal(prepared.features.as_feed()[name], array)
    wanted = [Rejected(changes[n].record, Stage.FEATURES, "IndexError: beyond the table") for n in sorted(poisoned)]
    assert rejected == wanted


def test_a_surprise_of_the_decoder_costs_its_record_only(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that no one foresaw in decoding a cover rejects that listing."""

    def surprising(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a height of 0")

    monkeypatch.setattr(covers, "decode_cover", surprising)
    changes = [an_update(replace(a_numbered_book(0), cover=a_jpeg_cover())), an_update(a_numbered_book(1), offset=1)]
    prepared, rejected = predictor.prepare(changes)
    assert prepared.changes == changes[1:]
    assert rejected == [Rejected(changes[0].record, Stage.COVER, "cover: ZeroDivisionError: a height of 0")]


@pytest.mark.parametrize("kind", ["nan", "infinite"])
def test_a_row_that_is_no_number_is_rejected_alone(
    predictor: Predictor, backend: FakeBackend, tiny_bundle: Bundle, kind: str
) -> None:
    """A record whose outputs are NaN or infinite is rejected; the rest of its batch is answered in the same pass."""
    book = replace(a_numbered_book(1), currency="USD")
    getattr(backend, kind).add(fingerprint(tiny_bundle, book))
    changes = [an_update(one, offset=n) for n, one in enumerate((a_numbered_book(0), book, a_numbered_book(2)))]
    answered, rejected = predictor.predict(predictor.prepare(changes)[0])
    assert [change for change, _ in answered] == [changes[0], changes[2]]
    assert rejected == [Rejected(changes[1].record, Stage.INFERENCE, "the model's output is not finite")]
    assert backend.batches == [3]


def test_a_bundle_proves_itself_before_the_first_listing(predictor: Predictor, backend: FakeBackend) -> None:
    """Warming up runs the bundle's golden inputs through the backend."""
    predictor.warm_up()
    assert backend.batches == [3]


def test_a_backend_with_other_answers_is_refused(predictor: Predictor, backend: FakeBackend) -> None:
    """A backend whose answers differ from those that the bundle was made with does not serve."""
    truthful = backend.infer

    def skewed(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = truthful(inputs)
        outputs["department"][0, 0] += 0.1
        return outputs

    backend.infer = skewed  # type: ignore[method-assign, assignment]
    with pytest.raises(SettingsError, match=r"output 'department' of fake differs from the golden one by up to 0\.1"):
        predictor.warm_up()


def test_a_backend_that_cannot_run_the_golden_inputs_is_refused(predictor: Predictor, backend: FakeBackend) -> None:
    """A backend that fails on the bundle's golden inputs does not serve."""

    def failing(_: object) -> dict[str, np.ndarray]:
        raise InferenceFailed("no kernel")

    backend.infer = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(SettingsError, match=r"model\.bundle: its golden inputs do not run on fake: no kernel"):
        predictor.warm_up()
