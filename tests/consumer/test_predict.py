"""`consumer predict` as a function: lines in, documents out, in the same order, as the service would answer."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from consumer.listing_files import ListingLine
from consumer.predict import as_json_line, predict_lines
from consumer.prediction import Predictor
from consumer.prediction_json import prediction_document
from model.bundle import Bundle
from model.listing import Listing
from tests.examples import NOW_MS, a_chinese_novel, a_jpeg_cover, a_numbered_book, a_truncated_jpeg, a_used_hardback, an_update
from tests.fake_model import FakeBackend, fingerprint


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def predictor(tiny_bundle: Bundle, backend: FakeBackend) -> Predictor:
    return Predictor(tiny_bundle, backend, cover_bytes_max=100_000)


def line(listing: Listing, cover: bytes | None = None) -> ListingLine:
    values = {name: value for name, value in asdict(listing).items() if value is not None and name != "cover"}
    return ListingLine("file:1", {**values, "authors": list(listing.authors)}, cover)


def documents(lines: list[ListingLine], predictor: Predictor, *, batch: int = 4) -> list[dict[str, Any]]:
    return list(predict_lines(lines, predictor, now_ms=NOW_MS, batch=batch))


def expected(listing: Listing, predictor: Predictor) -> dict[str, Any]:
    """What the service's own path says of a listing."""
    [(_, predictions)], _ = predictor.predict(predictor.prepare([an_update(listing)])[0])
    return prediction_document(
        listing_id=listing.listing_id, version=listing.version, model="tiny@1.0.0", predictions=predictions
    )


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_documents_come_in_the_order_of_the_lines(predictor: Predictor, batch: int) -> None:
    """Each line has its document in its place, whatever the batch size, and it is what the service would say."""
    listings = [a_used_hardback(), *(a_numbered_book(number) for number in range(7)), a_chinese_novel()]
    found = documents([line(listing) for listing in listings], predictor, batch=batch)
    assert found == [expected(listing, predictor) for listing in listings]


def test_errors_stand_in_their_place(predictor: Predictor, backend: FakeBackend, tiny_bundle: Bundle) -> None:
    """A line that is no listing, has a broken cover or breaks the model gives an error with stage and reason; others go on."""
    backend.poison.add(fingerprint(tiny_bundle, a_numbered_book(3)))
    lines = [
        line(a_numbered_book(0)),
        ListingLine("file:2", {}, error="file:2: expected a JSON object, found list"),
        ListingLine("file:3", {"title": "no id"}),
        ListingLine("file:4", {"listing_id": "p", "price": float("nan")}),
        line(a_numbered_book(1), a_truncated_jpeg()),
        line(a_numbered_book(3)),
        line(a_numbered_book(4), a_jpeg_cover()),
    ]
    found = documents(lines, predictor)
    assert found[0] == expected(a_numbered_book(0), predictor)
    assert found[6] == expected(replace(a_numbered_book(4), cover=a_jpeg_cover()), predictor)
    assert [(one["listing_id"], one["error"]["stage"], one["error"]["reason"][:45]) for one in found[1:6]] == [
        ("file:2", "decode", "file:2: expected a JSON object, found list"),
        ("file:3", "decode", "listing_id: expected a non-empty string, foun"),
        ("p", "decode", "price: expected a finite number, found float "),
        ("book-1", "cover", "cover: the image is broken or truncated (OSEr"),
        ("book-3", "inference", "poisoned"),
    ]


def test_one_id_may_occur_twice(predictor: Predictor) -> None:
    """Two lines of one listing are two documents: nothing is collapsed."""
    lines = [line(a_numbered_book(number, listing_id="x", version=version)) for number, version in ((1, 5), (2, 4))]
    assert [(one["listing_id"], one["version"]) for one in documents(lines, predictor)] == [("x", 5), ("x", 4)]


def test_a_listing_without_a_version_is_as_of_now(predictor: Predictor) -> None:
    """A line without a version has the time of the call, in milliseconds."""
    assert documents([ListingLine("f:1", {"listing_id": "x"})], predictor)[0]["version"] == NOW_MS


def test_no_lines_give_no_documents(predictor: Predictor, backend: FakeBackend) -> None:
    """Nothing in, nothing out."""
    assert (documents([], predictor), backend.batches) == ([], [])


@pytest.mark.parametrize("listing_id", ["bd-1", "活着", 'quote " and \n line', "lone \ud800 surrogate"])
def test_a_document_is_one_line_of_utf8(listing_id: str) -> None:
    """A document is one line that can be written as UTF-8 and read back, Chinese as it is."""
    text = as_json_line({"listing_id": listing_id, "labels": ["历史"]})
    assert json.loads(text.encode()) == {"listing_id": listing_id, "labels": ["历史"]}
    assert "\n" not in text
    assert listing_id.isascii() or "\ud800" in listing_id or listing_id in text
