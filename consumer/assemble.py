"""From arrays to answers: what the model's outputs mean for a listing, and what each input offset is answered with. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumer.batch_encoder import NOT_ASKED, BatchEncoder, Said
from consumer.predictions import Predictions
from consumer.records import Answer, Change, CoverUse, Enriched, ModelIdentity, Outcome, State, Tombstone
from consumer.task_prediction import CONFIDENCE_STEPS
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
    encoder: BatchEncoder,
    observe: Callable[[TaskSpec, NDArray[np.float32]], None] | None = None,
) -> list[Predictions]:
    """What the model says of each listing.

    Args:
        outputs: task name to float32 [batch, labels] probabilities, or [batch, 3] value, low, high of a regression.
        listings: the batch, in the outputs' order.
        encoder: of the model's tasks.
        observe: told each task with labels and the probabilities of the listings that it is asked of.
    Returns:
        Task name to answer, for each listing. A task that is only asked where the listing lacks the field
        (publisher, author, format) is absent where it has it; so is a price band in a currency without bands.
    """
    tasks = encoder.tasks
    counts = np.full((len(listings), len(tasks)), NOT_ASKED)
    ranked: list[tuple[int, Ranked]] = []
    values = [np.zeros((len(listings), 0, 3), dtype=np.float32)]
    for place, task in enumerate(tasks):
        rows, asked, of = _asked(task, outputs[task.name], listings)
        if observe is not None and task.labels and len(asked):
            observe(task, asked)
        if task.kind == "regression":
            counts[rows, place] = 0
            values.append(outputs[task.name][:, np.newaxis])
        elif len(asked):
            one = _READ[task.kind](task, asked, of)
            counts[rows, place] = one.counts
            ranked.append((place, one))
    labels, steps = _in_order(counts, ranked)
    return encoder.encode(Said(counts, labels, steps, np.concatenate(values, axis=1)))


@dataclass(frozen=True, slots=True)
class Ranked:
    """One task's labels for the listings that it is asked of, best first, listing by listing.

    Attributes:
        counts: int64 [asked], how many labels; NOT_ASKED where it has nothing to say after all.
        labels, steps: int64 [labels], which, and their confidences in ten-thousandths.
    """

    counts: NDArray[np.int64]
    labels: NDArray[np.int64]
    steps: NDArray[np.int64]


def _in_order(counts: NDArray[np.int64], ranked: Sequence[tuple[int, Ranked]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and steps of all tasks, listing by listing: int64 [labels] each."""
    given = np.maximum(counts, 0)
    starts = (np.cumsum(given) - given.ravel()).reshape(counts.shape)
    labels = np.empty(int(given.sum()), dtype=np.int64)
    steps = np.empty_like(labels)
    for place, one in ranked:
        own = given[:, place]
        at = np.repeat(starts[:, place] - (np.cumsum(own) - own), own) + np.arange(len(one.labels))
        labels[at], steps[at] = one.labels, one.steps
    return labels, steps


def _asked(
    task: TaskSpec, output: NDArray[Any], listings: Sequence[Listing]
) -> tuple[slice | list[int], NDArray[Any], Sequence[Listing]]:
    """The rows of the listings that a task is asked of, with its outputs for them, and these listings."""
    field = task.asked_only_where_missing
    if field is None:
        return slice(None), output, listings
    rows = [row for row, listing in enumerate(listings) if not getattr(listing, field)]
    return rows, output[rows], [listings[row] for row in rows]


def _single(task: TaskSpec, array: NDArray[np.floating[Any]], _: Sequence[Listing]) -> Ranked:
    best = _best(array, task.top_k)
    steps = _steps(np.take_along_axis(array, best, axis=1))
    return Ranked(np.full(len(array), best.shape[1]), best.ravel(), steps.ravel())


def _best(array: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """The `count` highest of each row, best first; of equal ones the earlier: intp [batch, count]. Sorts no more than it must."""
    labels = array.shape[1]
    if labels > 4 * count:
        found = np.sort(np.argpartition(-array, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(array, found, axis=1), axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)
    return np.argsort(-array, axis=1, kind="stable")[:, :count]


def _steps(confidences: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Probabilities in the steps that are told apart: four digits."""
    return np.rint(confidences.astype(np.float64) * CONFIDENCE_STEPS).clip(0, CONFIDENCE_STEPS).astype(np.int64)


def _multi(task: TaskSpec, array: NDArray[np.floating[Any]], _: Sequence[Listing]) -> Ranked:
    rows, labels = np.nonzero(array >= np.asarray(task.thresholds))
    steps = _steps(array[rows, labels])
    order = np.lexsort((labels, -steps, rows))  # row by row, best first
    return Ranked(np.bincount(rows, minlength=len(array)), labels[order], steps[order])


def _ordinal(task: TaskSpec, array: NDArray[np.floating[Any]], listings: Sequence[Listing]) -> Ranked:
    if task.group_field is None:
        return _single(task, array, listings)
    array = array.astype(np.float64)
    mask = np.ones_like(array)
    unasked = []
    for row, listing in enumerate(listings):
        stated = getattr(listing, task.group_field)
        if not stated:
            continue
        group = task.groups.get(stated.upper())
        if group is None:
            unasked.append(row)
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
    counts = (steps > 0).sum(axis=1)  # the bands of other currencies come last, with nothing
    counts[unasked] = NOT_ASKED
    likely = np.arange(best.shape[1]) < counts[:, np.newaxis]
    return Ranked(counts, best[likely], steps[likely])


_READ = {"single": _single, "multi": _multi, "ordinal": _ordinal}


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


def without_model(
    winners: Mapping[str, Change], known: Mapping[str, Enriched], covers: Mapping[str, CoverUse]
) -> tuple[dict[str, tuple[Outcome, State]], list[Change]]:
    """What can be said at once, and the changes that the model must look at.

    Args:
        winners: listing id to its change, as `collapse` gives them.
        known: what the store holds for those listings whose content has not changed.
        covers: listing id to whether that content has a cover.
    """
    proposed: dict[str, tuple[Outcome, State]] = {}
    unseen = []
    for key, winner in winners.items():
        if winner.listing is None:
            proposed[key] = (Outcome.PREDICTED, Tombstone(key, winner.version))
        elif key in known:
            same = known[key]
            state = Enriched(
                key, winner.version, same.content, same.predictions, same.model, same.model_epoch, covers[key], same.engine
            )
            proposed[key] = (Outcome.REUSED, state)
        else:
            unseen.append(winner)
    return proposed, unseen


def predicted(
    answered: Iterable[tuple[Change, Predictions]],
    contents: Mapping[str, str],
    covers: Mapping[str, CoverUse],
    model: ModelIdentity,
) -> dict[str, tuple[Outcome, State]]:
    """Listing id to what the model says of it; `contents` are the hashes of what the model saw."""
    proposed: dict[str, tuple[Outcome, State]] = {}
    for change, found in answered:
        key = change.listing_id
        state = Enriched(key, change.version, contents[key], found, str(model), model.epoch, covers[key], model.engine)
        proposed[key] = (Outcome.PREDICTED, state)
    return proposed


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
