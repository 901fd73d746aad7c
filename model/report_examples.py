"""Listings with the model's answers beside the truth, for the report: some right, some wrong, with their covers."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.bundle import Bundle
from model.dataset import Rows, labels_of
from model.evaluate import open_session, predict
from model.tasks import tasks_of

_EACH = 3  # right ones of each task, and as many wrong ones
_ROWS_MAX = 1500


@dataclass(frozen=True, slots=True)
class Example:
    """A listing and one answer.

    Attributes:
        cover: a data URI of what the model saw, or None.
        confidence: of the answer, 0..1.
    """

    task: str
    title: str
    authors: str
    cover: str | None
    truth: str
    answer: str
    confidence: float

    @property
    def right(self) -> bool:
        return self.truth == self.answer


def examples_of(bundle: Bundle, rows: Rows) -> list[Example]:
    """For each single-label task up to 3 right and 3 wrong answers, spread over the rows that have its label."""
    return [each for found in _by_task(bundle, rows) for each in found]


def _by_task(bundle: Bundle, rows: Rows) -> Iterator[list[Example]]:
    session, extractor = open_session(bundle.graph_path), bundle.extractor()
    for task in tasks_of(bundle.manifest):
        labelled = np.flatnonzero(labels_of(task, rows).present)
        if task.entry.kind != "single" or not len(labelled):
            continue
        index = np.unique(labelled[np.linspace(0, len(labelled) - 1, _ROWS_MAX).astype(np.int64)])
        probabilities = predict(session, extractor, rows, index, hidden=task.hidden_input)[task.name]
        truth, answers = labels_of(task, rows).values[index], probabilities.argmax(axis=1)
        with_cover = rows.cover_of[index] >= 0
        places = [place for right in (answers == truth, answers != truth) for place in _spread(right, with_cover)]
        yield [
            Example(
                task=task.name,
                title=rows.listings[index[place]].title or "",
                authors=", ".join(rows.listings[index[place]].authors),
                cover=_cover(rows, int(index[place])),
                truth=task.labels[truth[place]],
                answer=task.labels[answers[place]],
                confidence=float(probabilities[place].max()),
            )
            for place in places
        ]


def _spread(wanted: NDArray[np.bool_], with_cover: NDArray[np.bool_]) -> list[int]:
    """Up to 3 of the wanted places, far from each other, those with a cover where there are enough."""
    places = np.flatnonzero(wanted & with_cover)
    if len(places) < _EACH:
        places = np.flatnonzero(wanted)
    return [int(places[at]) for at in np.unique(np.linspace(0, len(places) - 1, _EACH).astype(np.int64))] if len(places) else []


def _cover(rows: Rows, row: int) -> str | None:
    if rows.cover_of[row] < 0:
        return None
    pixels = rows.covers[rows.cover_of[row]]
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
