"""`consumer predict`: JSON lines in, predictions out, in the same order; no Kafka, no Redis."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from consumer.listing_files import ListingLine
from consumer.prediction import Predictor
from consumer.prediction_json import prediction_document
from consumer.records import Change, InputRecord, Rejected
from model.listing import InvalidListing, listing_from_mapping


def predict_lines(lines: Iterable[ListingLine], predictor: Predictor, *, now_ms: int, batch: int) -> Iterator[dict[str, Any]]:
    """One document a line: the prediction, or `error` with stage and reason.

    Args:
        now_ms: the version of a listing that states none.
        batch: how many lines go through the model at once.
    """
    iterator = iter(lines)
    while chunk := list(islice(iterator, batch)):
        yield from _predict_chunk(chunk, predictor, now_ms)


def _predict_chunk(chunk: list[ListingLine], predictor: Predictor, now_ms: int) -> list[dict[str, Any]]:
    documents: dict[int, dict[str, Any]] = {}
    changes: list[Change] = []
    for position, line in enumerate(chunk):
        try:
            if line.error is not None:
                raise InvalidListing(line.error)
            listing = listing_from_mapping(line.values, default_version=now_ms, cover=line.cover)
        except InvalidListing as error:
            documents[position] = _error(line.listing_id, "decode", str(error))
            continue
        record = InputRecord("", 0, position, None, None, (), now_ms)  # its offset leads back to the line
        changes.append(Change(record, listing.listing_id, listing.version, listing))
    prepared, rejected = predictor.prepare(changes)
    answered, more_rejected = predictor.predict(prepared)
    for change, predictions in answered:
        documents[change.record.offset] = prediction_document(
            listing_id=change.listing_id, version=change.version, model=str(predictor.identity), predictions=predictions
        )
    for one in (*rejected, *more_rejected):
        documents[one.record.offset] = _rejected(chunk[one.record.offset].listing_id, one)
    return [documents[position] for position in range(len(chunk))]


def _rejected(listing_id: str, rejected: Rejected) -> dict[str, Any]:
    return _error(listing_id, rejected.stage.value, rejected.reason)


def _error(listing_id: str, stage: str, reason: str) -> dict[str, Any]:
    return {"listing_id": listing_id, "error": {"stage": stage, "reason": reason}}


def as_json_line(document: dict[str, Any]) -> str:
    """One line of JSON, readable where it is Chinese."""
    line = json.dumps(document, ensure_ascii=False, separators=(", ", ": "))
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry and UTF-8 cannot
        return json.dumps(document, separators=(", ", ": "))
    return line
