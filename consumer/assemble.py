"""From arrays to answers: what the model's outputs mean for a listing, and what each input offset is answered with. Pure."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumer.records import Answer, Change, Enriched, Outcome, State, Tombstone
from consumer.task_prediction import CONFIDENCE_STEPS, LabelEncoder, TaskPrediction
from model.bundle import TaskSpec
from model.listing import Listing

Outputs = Mapping[str, NDArray[Any]]


def finite_rows(outputs: Outputs) -> NDArray[np.bool_]:
    """Which rows of the model's outputs hold numbers only: bool [batch]."""
    finite: NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(array).all(axis=1) for array in outputs.values()])
    return finite


def predictions(
    outputs: Outputs,
    listings: Sequence[Listing],
    tasks: Sequence[TaskSpec],
    observe: Callable[[TaskSpec, NDArray[np.float32]], None] | None = None,
) -> list[dict[str, TaskPrediction]]:
    """What the model says of each listing.

    Args:
        outputs: task name to float32 [batch, labels] probabilities, or [batch, 3] value, low, high of a regression.
        listings: the batch, in the outputs' order.
        observe: told each task with labels and the probabilities of the listings that it is asked of.
    Returns:
        A dictionary a listing, task name to answer. A task that is only asked where the listing lacks the field
        (publisher, author, format) is absent where it has it; so is a price band in a currency without bands.
    """
    answers: list[dict[str, TaskPrediction]] = [{} for _ in listings]
    for task in tasks:
        rows = _rows_asked(task, listings)
        if not rows:
            continue
        asked = outputs[task.name] if len(rows) == len(listings) else outputs[task.name][rows]
        if observe is not None and task.labels:
            observe(task, asked)
        array = asked.astype(np.float64)
        for row, prediction in zip(rows, _READ[task.kind](task, array, [listings[row] for row in rows]), strict=True):
            if prediction is not None:
                answers[row][task.name] = prediction
    return answers


def _rows_asked(task: TaskSpec, listings: Sequence[Listing]) -> list[int]:
    field = task.asked_only_where_missing
    if field is None:
        return list(range(len(listings)))
    return [row for row, listing in enumerate(listings) if not getattr(listing, field)]


def _single(task: TaskSpec, array: NDArray[np.float64], _: Sequence[Listing]) -> list[TaskPrediction | None]:
    best = _best(array, task.top_k)
    steps = _steps(np.take_along_axis(array, best, axis=1))
    encode = _encoder(task.labels).encode
    return [encode(labels, confidences) for labels, confidences in zip(best.tolist(), steps.tolist(), strict=True)]


def _best(array: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The `count` highest of each row, best first; of equal ones the earlier: intp [batch, count]. Sorts no more than it must."""
    labels = array.shape[1]
    if labels > 4 * count:
        found = np.sort(np.argpartition(-array, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(array, found, axis=1), axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)
    return np.argsort(-array, axis=1, kind="stable")[:, :count]


def _steps(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """Probabilities in the steps that are told apart: four digits."""
    return np.rint(confidences * CONFIDENCE_STEPS).clip(0, CONFIDENCE_STEPS).astype(np.int64)


def _multi(task: TaskSpec, array: NDArray[np.float64], _: Sequence[Listing]) -> list[TaskPrediction | None]:
    rows, labels = np.nonzero(array >= np.asarray(task.thresholds))
    steps = _steps(array[rows, labels])
    order = np.lexsort((labels, -steps, rows))  # row by row, best first
    ends = np.searchsorted(rows, np.arange(len(array)), side="right").tolist()
    labels_in_order, steps_in_order = labels[order].tolist(), steps[order].tolist()
    encode = _encoder(task.labels).encode
    return [
        encode(labels_in_order[start:end], steps_in_order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


@lru_cache(maxsize=256)
def _encoder(labels: tuple[str, ...]) -> LabelEncoder:
    """One for each set of labels: a model has a few dozen, and the next one may bring others."""
    return LabelEncoder(labels)


def _ordinal(task: TaskSpec, array: NDArray[np.float64], listings: Sequence[Listing]) -> list[TaskPrediction | None]:
    if task.group_field is None:
        return _single(task, array, listings)
    mask = np.ones_like(array)
    unasked = set()
    for row, listing in enumerate(listings):
        stated = getattr(listing, task.group_field)
        if not stated:
            continue
        group = task.groups.get(stated.upper())
        if group is None:
            unasked.add(row)
            continue
        first, end = group
        mask[row, :first] = 0
        mask[row, end:] = 0
    masked = array * mask
    total = masked.sum(axis=1, keepdims=True)
    # A network sure of another currency leaves nothing to share out: then the bands of the stated one are equally likely.
    scaled = np.divide(masked, total, out=mask / mask.sum(axis=1, keepdims=True), where=total > 0)
    best = _best(scaled, task.top_k)
    steps = _steps(np.take_along_axis(scaled, best, axis=1))
    likely = (steps > 0).sum(axis=1).tolist()  # the bands of other currencies come last, with nothing
    encode = _encoder(task.labels).encode
    return [
        None if row in unasked else encode(labels[:count], confidences[:count])
        for row, (labels, confidences, count) in enumerate(zip(best.tolist(), steps.tolist(), likely, strict=True))
    ]


def _regression(_: TaskSpec, array: NDArray[np.float64], __: Sequence[Listing]) -> list[TaskPrediction | None]:
    return [TaskPrediction.regression(value, low, high) for value, low, high in array.round(4).tolist()]


_READ = {"single": _single, "multi": _multi, "ordinal": _ordinal, "regression": _regression}


def collapse(changes: Sequence[Change]) -> dict[str, Change]:
    """The change that counts for each listing: the one that the store's guard would let stand if it saw them one by one.

    That is the highest version; of equal ones a deletion, else the later.
    """
    winners: dict[str, Change] = {}
    for change in changes:
        former = winners.get(change.listing_id)
        if former is None or _rank(change) >= _rank(former):
            winners[change.listing_id] = change
    return winners


def _rank(change: Change) -> tuple[int, bool]:
    return change.version, change.listing is None


def answers(
    changes: Sequence[Change], *, proposed: Mapping[str, tuple[Outcome, State]], stored: Mapping[str, State]
) -> list[Answer]:
    """One answer for each change, so that the last answer of a key is what the store holds.

    Args:
        changes: all accepted records of the batch, in their order.
        proposed: listing id to what this batch wanted to write for it.
        stored: listing id to what the store held afterwards; the proposed state, or a newer one that it kept.
    """
    last = {change.listing_id: change for change in changes}
    return [
        _answer(change, proposed[change.listing_id], stored[change.listing_id], is_last=last[change.listing_id] is change)
        for change in changes
    ]


def _answer(change: Change, proposed: tuple[Outcome, State], state: State, *, is_last: bool) -> Answer:
    outcome, wanted = proposed
    if change.listing is None and not is_last:  # readers see the deletion, even if the listing came back in this batch
        return Answer(change.record, Outcome.SUPERSEDED, Tombstone(change.listing_id, change.version))
    ours = (state is wanted or state == wanted) and state.version == change.version
    if isinstance(state, Enriched):
        return Answer(change.record, outcome if ours and change.listing is not None else Outcome.SUPERSEDED, state)
    return Answer(change.record, Outcome.PREDICTED if ours else Outcome.SUPERSEDED, state)
