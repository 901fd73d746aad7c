"""A batch's answers in all the texts that leave the service, without a Python loop over labels.

Nearly every byte of an answer stands in a table that a model has one of: its labels and the ten thousand confidences, in JSON
and in Avro. So both texts of a batch are lists of pieces, gathered from numpy's object arrays and joined once; how long each
listing's part is follows from the pieces' lengths. A listing has about fifty labels: one by one they took 48 µs of processor
time, so they take 25 (batches of 256 real listings, fourteen tasks; from the model's outputs on).

Of the same arrays a listing's *compact* form is cut, a few hundred bytes that the store keeps: a listing whose content has not
changed is answered from these, by the same gathering, instead of from the JSON of all its tasks (56 µs, so 12).
"""

import binascii
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from json.encoder import encode_basestring
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from consumer.predictions import MAP_END, Predictions, check_names, packed, string_head
from consumer.task_prediction import (
    CONFIDENCE_AVRO,
    CONFIDENCE_STEPS,
    NO_LABELS,
    NO_VALUES,
    avro_long,
    avro_string,
)
from model.bundle import TaskSpec

NOT_ASKED: Final = -1
_LENGTHS: Final = 4096  # of a task's JSON, whose heads are ready; most are below 500
_VALUES: Final = struct.Struct("<BBdBdBd")
Pieces = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Said:
    """What the model says of a batch, as numbers.

    Attributes:
        counts: int64 [batch, tasks], how many labels; NOT_ASKED where the task has nothing to say of the listing.
        labels: int64 [labels], by index within the task, best first: listing by listing and task by task.
        steps: int64 [labels], their confidences in ten-thousandths.
        values: float32 [batch, regressions, 3], value, low and high.
    """

    counts: NDArray[np.int64]
    labels: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Table:
    """Pieces, and how many bytes each has."""

    pieces: Pieces
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "_Table":
        return cls(_array(pieces), np.array([len(piece) for piece in pieces], dtype=np.int64))

    def at(self, index: NDArray[np.integer[Any]]) -> "_Table":
        """Some of them, copied."""
        return _Table(self.pieces[index], self.lengths[index])


class _Layout:
    """Where the pieces of each answer stand: name, head, then label and confidence in turn, tail. Both texts are laid out so.

    Attributes:
        tasks: int64 [answers], of each answer that is given, listing by listing.
        counts: int64 [answers], its labels.
        is_regression: bool [answers].
        values: float64 [regressions, 3], value, low and high of these answers, in order, rounded as they leave.
        labels: int64 [labels], among those of all tasks.
        is_first: bool [labels], whether it is the first of its answer.
        answers_before: int64 [batch + 1], how many answers stand before each listing's.
    """

    def __init__(self, said: Said, *, labels_before: NDArray[np.int64], regressions: NDArray[np.bool_]) -> None:
        given = said.counts != NOT_ASKED
        self.tasks = np.nonzero(given)[1]
        self.counts = said.counts[given]
        self.answers_before = _before(given.sum(axis=1))
        self.is_regression = regressions[self.tasks]
        self.values = said.values[given[:, regressions]].astype(np.float64).round(4)
        self.labels = said.labels + np.repeat(labels_before[self.tasks], self.counts)
        self.steps = said.steps
        self._labels_before = _before(self.counts)
        self.is_first = np.zeros(len(self.labels), dtype=np.bool_)
        self.is_first[self._labels_before[:-1][self.counts > 0]] = True
        begins = _before(3 + 2 * self.counts)
        self._names = begins[:-1]
        self._tails = begins[1:] - 1
        self._labels = np.repeat(self._names + 2 - 2 * self._labels_before[:-1], self.counts) + 2 * np.arange(len(self.labels))
        self._pieces = int(begins[-1])

    def joined(self, *, names: Pieces, heads: Pieces, labels: Pieces, confidences: Pieces, tails: Pieces) -> bytes:
        """The text of the whole batch."""
        pieces = np.empty(self._pieces, dtype=np.object_)
        pieces[self._names], pieces[self._names + 1], pieces[self._tails] = names, heads, tails
        pieces[self._labels], pieces[self._labels + 1] = labels, confidences
        return b"".join(pieces.tolist())

    def sums(self, of_labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each answer what its labels add up to: int64 [answers]."""
        return np.diff(_before(of_labels)[self._labels_before])

    def tails(self, of_labels: _Table, of_regressions: Sequence[bytes]) -> _Table:
        """The last piece of each answer: a regression's is all it says; `of_labels` are those without labels, and after some."""
        found = of_labels.at((self.counts > 0).astype(np.intp))
        found.pieces[self.is_regression] = _array(of_regressions)
        found.lengths[self.is_regression] = [len(one) for one in of_regressions]
        return found

    def cut(self, text: bytes, of_answers: NDArray[np.int64]) -> list[bytes]:
        """The text of each listing, by the lengths of the answers."""
        bounds = _before(of_answers)[self.answers_before].tolist()
        return [text[start:end] for start, end in pairwise(bounds)]


class BatchEncoder:
    """Makes the answers of a model's tasks. Holds no state between calls; may be shared by threads."""

    def __init__(self, tasks: Sequence[TaskSpec]) -> None:
        """Raises: ValueError: a task's name begins with an underscore, as what else the store's hash holds."""
        self.tasks = tuple(tasks)
        check_names(task.name for task in tasks)
        names = [encode_basestring(label).encode() for task in tasks for label in task.labels]
        starts = (b'{"labels":[{"label":', b',{"label":')  # of an answer's first label, and of those that follow
        self._json = _Table.of([start + name + b',"confidence":' for start in starts for name in names])
        self._avro = _Table.of([avro_string(label) for task in tasks for label in task.labels])
        self._labels_before = _before(np.array([len(task.labels) for task in tasks], dtype=np.int64))
        self._fields = _Table.of([packed(task.name) for task in tasks])
        self._names = _Table.of([avro_string(task.name) for task in tasks])
        most = max((len(task.labels) for task in tasks), default=0)
        self._counts = _Table.of([avro_long(count) if count else b"" for count in range(max(most, len(tasks)) + 1)])
        self._regressions = np.array([task.kind == "regression" for task in tasks], dtype=np.bool_)
        self._index = np.min_scalar_type(most + 1)  # of counts and labels in the compact form; its highest says NOT_ASKED
        # A compact form begins with a checksum that starts from the tasks', so it fits no other tasks.
        self._checksum = zlib.crc32(json.dumps([(task.name, task.kind, task.labels) for task in tasks]).encode())

    def encode(self, said: Said) -> list[Predictions]:
        """The answers of each listing."""
        layout = self._layout(said)
        counts = np.diff(layout.answers_before).tolist()
        texts = zip(counts, self._avro_of(layout), self._fields_of(layout), self._compact(said), strict=True)
        return [Predictions(count=n, avro=avro, fields=fields, compact=compact) for n, avro, fields, compact in texts]

    def recall(self, compact: Sequence[bytes]) -> list[Predictions | None]:
        """The answers that were given before, of their compact form; None for what another model's tasks or labels made."""
        bodies = [self._body(one) for one in compact]
        ours = [(place, body) for place, body in enumerate(bodies) if body is not None]
        layout = self._layout(self._read([body for _, body in ours]))
        made = zip(ours, np.diff(layout.answers_before).tolist(), self._avro_of(layout), strict=True)
        recalled: list[Predictions | None] = [None] * len(compact)
        for (place, body), count, avro in made:
            fields = partial(self._fields_again, body)
            recalled[place] = Predictions(count=count, avro=avro, fields=fields, compact=compact[place])
        return recalled

    def _fields_again(self, body: bytes) -> bytes:
        return self._fields_of(self._layout(self._read([body])))[0]

    def _layout(self, said: Said) -> _Layout:
        return _Layout(said, labels_before=self._labels_before, regressions=self._regressions)

    def _fields_of(self, layout: _Layout) -> list[bytes]:
        labels = self._json.at(np.where(layout.is_first, layout.labels, layout.labels + len(self._avro.pieces)))
        confidences = _CONFIDENCE_JSON.at(layout.steps)
        numbers = layout.values.tolist()
        values = [f'{{"value":{value!r},"low":{low!r},"high":{high!r}}}'.encode() for value, low, high in numbers]
        tails = layout.tails(_JSON_TAILS, values)
        names = self._fields.at(layout.tasks)
        lengths = layout.sums(labels.lengths + confidences.lengths) + tails.lengths
        text = layout.joined(
            names=names.pieces,
            heads=_heads(lengths),
            labels=labels.pieces,
            confidences=confidences.pieces,
            tails=tails.pieces,
        )
        return layout.cut(text, names.lengths + len(string_head(0)) + lengths)

    def _avro_of(self, layout: _Layout) -> list[bytes]:
        labels, counts, names = self._avro.at(layout.labels), self._counts.at(layout.counts), self._names.at(layout.tasks)
        confidences = _CONFIDENCE_AVRO.at(layout.steps)
        pack = _VALUES.pack  # no labels, and three times the second of a union's types
        tails = layout.tails(_AVRO_TAILS, [pack(0, 2, value, 2, low, 2, high) for value, low, high in layout.values.tolist()])
        text = layout.joined(
            names=names.pieces,
            heads=counts.pieces,
            labels=labels.pieces,
            confidences=confidences.pieces,
            tails=tails.pieces,
        )
        own = names.lengths + counts.lengths + tails.lengths
        each = layout.cut(text, own + layout.sums(labels.lengths + confidences.lengths))
        answers = self._counts.pieces[np.diff(layout.answers_before)].tolist()
        return [count + one + MAP_END for count, one in zip(answers, each, strict=True)]

    def _compact(self, said: Said) -> list[bytes]:
        """Checksum, counts, values, labels, steps of each listing."""
        size, wide, deep = self._index.itemsize, len(self.tasks) * self._index.itemsize, said.values[:1].size * 4
        counts = said.counts.astype(self._index).tobytes()  # NOT_ASKED becomes the type's highest
        values = said.values.astype("<f4").tobytes()
        labels, steps = said.labels.astype(self._index).tobytes(), said.steps.astype("<u2").tobytes()
        bounds = _before(np.maximum(said.counts, 0).sum(axis=1)).tolist()
        bodies = [
            counts[row * wide : (row + 1) * wide]
            + values[row * deep : (row + 1) * deep]
            + labels[start * size : end * size]
            + steps[start * 2 : end * 2]
            for row, (start, end) in enumerate(pairwise(bounds))
        ]
        checksums = [zlib.crc32(body, self._checksum).to_bytes(4, "little") for body in bodies]
        return [binascii.b2a_base64(checksum + body, newline=False) for checksum, body in zip(checksums, bodies, strict=True)]

    def _body(self, compact: bytes) -> bytes | None:
        """What follows the checksum, where that is right."""
        try:
            raw = binascii.a2b_base64(compact)
        except binascii.Error:
            return None
        # The last letter has bits that no byte takes, which no checksum knows of.
        whole = binascii.b2a_base64(raw, newline=False) == compact
        return raw[4:] if whole and zlib.crc32(raw[4:], self._checksum).to_bytes(4, "little") == raw[:4] else None

    def _read(self, bodies: Sequence[bytes]) -> Said:
        size, wide, regressions = self._index.itemsize, len(self.tasks) * self._index.itemsize, int(self._regressions.sum())
        begin = wide + regressions * 12
        stored = np.frombuffer(b"".join([one[:wide] for one in bodies]), self._index).reshape(len(bodies), len(self.tasks))
        counts = np.where(stored == np.iinfo(self._index).max, NOT_ASKED, stored.astype(np.int64))
        ends = (begin + size * np.maximum(counts, 0).sum(axis=1)).tolist()
        labels = b"".join([one[begin:end] for one, end in zip(bodies, ends, strict=True)])
        steps = b"".join([one[end:] for one, end in zip(bodies, ends, strict=True)])
        values = np.frombuffer(b"".join([one[wide:begin] for one in bodies]), "<f4")
        return Said(
            counts,
            np.frombuffer(labels, self._index).astype(np.int64),
            np.frombuffer(steps, "<u2").astype(np.int64),
            values.reshape(len(bodies), regressions, 3),
        )


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much stands before each, and all of it last: int64 [n + 1]."""
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def _array(pieces: Sequence[bytes]) -> Pieces:
    array = np.empty(len(pieces), dtype=np.object_)
    array[:] = pieces
    return array


def _heads(lengths: NDArray[np.int64]) -> Pieces:
    if lengths.max(initial=0) < _LENGTHS:
        return _STRING_HEADS[lengths]
    return _array([string_head(length) for length in lengths.tolist()])


_CONFIDENCE_JSON = _Table.of([f"{step / CONFIDENCE_STEPS!r}}}".encode() for step in range(CONFIDENCE_STEPS + 1)])
_CONFIDENCE_AVRO = _Table.of(CONFIDENCE_AVRO)
_JSON_TAILS = _Table.of([b'{"labels":[]}', b"]}"])  # without labels, and after them
_AVRO_TAILS = _Table.of([NO_LABELS + NO_VALUES] * 2)  # an array ends with an empty block, and is one where it is empty
_STRING_HEADS = _array([string_head(length) for length in range(_LENGTHS)])
