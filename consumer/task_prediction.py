"""One task's answer, in the two texts that leave the service: JSON for the store and the commands, Avro for the topic.

This is one answer, as a store or a topic holds it; those of a model's whole batch are made by `batch_encoder`.
`tests/consumer/test_task_prediction.py` holds both texts against json and fastavro.

Avro's encoding: the record `Prediction` of `schemas/enriched_listing.avsc`, https://avro.apache.org/docs/1.12.0/specification/.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring
from math import isfinite

CONFIDENCE_STEPS = 10_000  # confidences have four digits
_DOUBLE = struct.Struct("<d")
NO_VALUES = b"\0\0\0"  # value, low and high: the union's null
NO_LABELS = b"\0"  # an array ends with an empty block
_FIRST_LABEL, _NEXT_LABEL, _NUMBER = '{"labels":[{"label":', '},{"label":', ',"confidence":'
CONFIDENCE_AVRO = [_DOUBLE.pack(step / CONFIDENCE_STEPS) for step in range(CONFIDENCE_STEPS + 1)]
_AVRO_OF_CONFIDENCE = {repr(step / CONFIDENCE_STEPS): avro for step, avro in enumerate(CONFIDENCE_AVRO)}


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a task with its calibrated probability."""

    label: str
    confidence: float


def avro_long(number: int) -> bytes:
    """Avro's int and long: zigzag, seven bits a byte, lowest first. `number` fits 64 bits."""
    rest = (number << 1) ^ (number >> 63)
    if rest < 0x80:
        return _SMALL[rest]
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def avro_string(text: str) -> bytes:
    """Avro's string: the length of its UTF-8 as a long, then these bytes."""
    encoded = text.encode()
    return avro_long(len(encoded)) + encoded


_SMALL = [bytes([number]) for number in range(0x80)]


class TaskPrediction:
    """Labels (best first) of a classification, or value and 80 % interval of a regression.

    Made by `classification`, `regression` or `from_json`. Equal when their JSON is.
    """

    __slots__ = ("_avro", "json")

    def __init__(self, text: str, avro: bytes | None = None) -> None:
        self.json = text
        self._avro = avro

    @classmethod
    def classification(cls, labels: Iterable[Label]) -> "TaskPrediction":
        """Raises: ValueError: a confidence is not finite."""
        found = [f'{{"label":{encode_basestring(one.label)},"confidence":{_number(one.confidence)}}}' for one in labels]
        return cls('{"labels":[' + ",".join(found) + "]}")

    @classmethod
    def regression(cls, value: float | None, low: float | None, high: float | None) -> "TaskPrediction":
        """Raises: ValueError: a number is not finite; JSON has no word for it."""
        text = f'{{"value":{_number(value)},"low":{_number(low)},"high":{_number(high)}}}'
        return cls(
            text, NO_LABELS + b"".join([b"\0" if one is None else b"\2" + _DOUBLE.pack(one) for one in (value, low, high)])
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "TaskPrediction":
        """The text as it is, where it is written as ours are; any other of the same meaning is written anew.

        Raises: ValueError: the text is not a task's prediction.
        """
        if isinstance(text, bytes):
            text = text.decode()
        if (avro := _labels_in_avro(text)) is not None:
            return cls(text, avro)
        try:
            content = json.loads(text)
            if "labels" in content:
                return cls.classification([Label(one["label"], one["confidence"]) for one in content["labels"]])
            return cls.regression(content["value"], content["low"], content["high"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a task's prediction in JSON, found {text[:80]!r}") from error

    @property
    def avro(self) -> bytes:
        """The record `Prediction`."""
        if self._avro is None:
            found = [avro_string(one.label) + _DOUBLE.pack(one.confidence) for one in self.labels or ()]
            self._avro = (avro_long(len(found)) + b"".join(found) if found else b"") + NO_LABELS + NO_VALUES
        return self._avro

    @property
    def labels(self) -> tuple[Label, ...] | None:
        """Best first; None for a regression."""
        labels = json.loads(self.json).get("labels")
        return None if labels is None else tuple(Label(one["label"], one["confidence"]) for one in labels)

    @property
    def values(self) -> tuple[float | None, float | None, float | None]:
        """Value, low, high; all None for a classification."""
        content = json.loads(self.json)
        return content.get("value"), content.get("low"), content.get("high")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskPrediction) and self.json == other.json

    def __hash__(self) -> int:
        return hash(self.json)

    def __repr__(self) -> str:
        return f"TaskPrediction({self.json})"


def _labels_in_avro(text: str) -> bytes | None:
    """The record `Prediction` from labels in our own JSON, without parsing it; None where it is anything else.

    By way of json and back a listing that is answered from the store takes 3.5 times as long.
    """
    if not (text.startswith(_FIRST_LABEL) and text.endswith("}]}")):
        return _EMPTY.avro if text == _EMPTY.json else None
    # A quotation mark within a name would be escaped, so what is split at stands between labels only.
    labels = text[len(_FIRST_LABEL) : -3].split(_NEXT_LABEL)
    encoded = []
    try:
        for label in labels:
            name, _, confidence = label.partition(_NUMBER)
            encoded.append(_name_in_avro(name) + _AVRO_OF_CONFIDENCE[confidence])
    except (KeyError, TypeError):  # another form, or not only a name and a number
        return None
    return avro_long(len(labels)) + b"".join(encoded) + NO_LABELS + NO_VALUES


@lru_cache(maxsize=1 << 16)
def _name_in_avro(text: str) -> bytes:
    """Raises: ValueError: not JSON; TypeError: not a string."""
    name = json.loads(text)
    if not isinstance(name, str):
        raise TypeError
    return avro_string(name)


_EMPTY = TaskPrediction('{"labels":[]}', NO_LABELS + NO_VALUES)


def _number(value: float | None) -> str:
    if value is None:
        return "null"
    if not isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return repr(float(value))  # float(): numpy's own floats have another repr
