"""A listing's answers to all tasks, as the texts that leave the service; made for a whole batch at once by `batch_encoder`."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from consumer.task_prediction import TaskPrediction, avro_long, avro_string

MAP_END: Final = b"\0"  # Avro's map ends with an empty block
_STRING: Final = struct.Struct(">BI")
_STRING_32: Final = 0xDB


def string_head(length: int) -> bytes:
    """MessagePack's head of a string of so many bytes; always the long form, so that whoever reads it needs to know but one.

    Source: https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    return _STRING.pack(_STRING_32, length)


def packed(text: str | bytes) -> bytes:
    """A text as MessagePack's string."""
    content = text.encode() if isinstance(text, str) else text
    return string_head(len(content)) + content


class Predictions(Mapping[str, TaskPrediction]):
    """Task name to answer. What is ready stays as it is: a `TaskPrediction` is made only where somebody asks for one.

    Attributes:
        count: how many tasks.
        avro: the map of Avro's `EnrichedListing`, its end included.
        compact: what `BatchEncoder.recall` makes the same answers of, base64; empty where they come from elsewhere.

    Args:
        fields: see there; a function where they are hardly ever asked for, since the store has them.
    """

    __slots__ = ("_fields", "_tasks", "avro", "compact", "count")

    def __init__(self, *, count: int, avro: bytes, fields: bytes | Callable[[], bytes], compact: bytes = b"") -> None:
        self.count = count
        self.avro = avro
        self.compact = compact
        self._fields = fields
        self._tasks: dict[str, TaskPrediction] | None = None

    @classmethod
    def of(cls, tasks: Mapping[str, TaskPrediction]) -> "Predictions":
        """The same answers with their texts; those that have them already are returned as they are.

        Raises: ValueError: a task's name begins with an underscore, as what else the store's hash holds.
        """
        if isinstance(tasks, Predictions):
            return tasks
        check_names(tasks)
        avro = b"".join([avro_string(task) + one.avro for task, one in tasks.items()])
        return cls(
            count=len(tasks),
            avro=(avro_long(len(tasks)) if tasks else b"") + avro + MAP_END,
            fields=b"".join([packed(text) for task, one in tasks.items() for text in (task, one.json)]),
        )

    @property
    def recalled(self) -> bool:
        """Whether they were made of what the store holds, so that it has `fields` already."""
        return not isinstance(self._fields, bytes)

    @property
    def fields(self) -> bytes:
        """MessagePack strings, task and JSON in turn: fields of the store's hash."""
        return self._fields if isinstance(self._fields, bytes) else self._fields()

    def _by_task(self) -> dict[str, TaskPrediction]:
        if self._tasks is None:
            texts = [text.decode() for text in _unpacked(self.fields)]
            self._tasks = {task: TaskPrediction(text) for task, text in zip(texts[::2], texts[1::2], strict=True)}
        return self._tasks

    def __getitem__(self, task: str) -> TaskPrediction:
        return self._by_task()[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_task())

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Predictions({self._by_task()})"


Recall = Callable[[Sequence[bytes]], Sequence[Predictions | None]]  # compact forms to the answers that they stand for


def check_names(tasks: Iterable[str]) -> None:
    """Raises: ValueError: a task's name begins with an underscore, as what else the store's hash holds."""
    if wrong := [task for task in tasks if task.startswith("_")]:
        raise ValueError(f"expected a task name without an underscore in front, found {wrong[0]!r}")


def _unpacked(strings: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(strings):
        _, length = _STRING.unpack_from(strings, at)
        at += _STRING.size + length
        yield strings[at - length : at]
