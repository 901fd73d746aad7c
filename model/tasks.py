"""The task file: which attributes the model predicts, from which sets and fields. Tasks are data, not code.

    [bundle]                name and version of what is trained
    [features], [training]  settings that differ from their defaults
    [[task]]                name, kind, sets, field and, by kind, labels, bands or scale

`load_task_file` validates it; `resolve` looks at training rows and settles the label sets.
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from model.bundle import Manifest, TaskKind, TaskSpec
from model.features import FeatureSettings
from model.text import INPUT_FIELDS, language_code
from model.training_settings import TrainingSettings


class TaskFileError(ValueError):
    """The task file cannot be used; the message names file, line, field, what was expected and what was found."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleEntry(_Part):
    name: str = Field(default="books", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    version: str = Field(default="0.1.0", pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]*$")


class LabelRule(_Part):
    """How the label set is chosen from the training rows; without any, every label found is one.

    Attributes:
        commonest_per_set: only so many of each set.
        min_rows: only labels with at least so many rows.
        other: name of the label that takes what was left out; without it such rows have no label.
        exclude: labels that are none ("Various" is not an author).
    """

    commonest_per_set: int | None = Field(default=None, ge=1)
    min_rows: int = Field(default=1, ge=1)
    other: str | None = None
    exclude: tuple[str, ...] = ()


class TaskEntry(_Part):
    """One `[[task]]` of the file.

    Attributes:
        field: of the data's rows, where the label is read.
        bands: for `ordinal`, the edges between bands, by currency.
        scale: for `regression`, what is learned: the number, its logarithm, or a rank as a score in 0..1.
        value_bands: for `regression`, edges between bands: the head learns the band, too, and the value given lies in the
            most probable one.
        leans_on: for `single`, a multi-label task of the same sets whose labels say much of this one's, see leaning.py.
        weight: of the task's loss.
        shapes_representation: False lets the task read the shared representation without changing it, for labels that
            are mostly noise.
        start_c, start_alpha: regularisation of its linear model, see linear_models.py; C of the SVM, alpha of the ridge.
        start_share: how much of the start's limited rank it may claim.
        taught_share: for `single` and `multi`, how much a language model's knowledge of titles weighs beside the linear model;
            above 0, one is tuned on the task's labels in training, see text_teacher.py. It reads English.
        broad: whether it also reads the text through the broad layer (`training.broad_width`), which it shares with all tasks
            that do; worth its time for few tasks of many rows.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    kind: TaskKind
    sets: tuple[str, ...] = Field(min_length=1)
    field: str
    labels: LabelRule = LabelRule()
    bands: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    scale: Literal["linear", "log", "rank"] = "linear"
    rank_within: str | None = None
    value_bands: tuple[float, ...] = ()
    asked_only_where_missing: bool = False
    leans_on: str | None = None
    weight: float = Field(default=1.0, gt=0)
    shapes_representation: bool = True
    start_c: float = Field(default=0.3, gt=0)
    start_alpha: float = Field(default=5.0, gt=0)
    start_share: float = Field(default=1.0, gt=0)
    taught_share: float = Field(default=0.0, ge=0, le=1)
    broad: bool = False
    top_k: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "ordinal") != bool(self.bands):
            raise ValueError("bands: expected edges by currency for an ordinal task and none for another")
        if any(list(edges) != sorted(set(edges)) or not edges for edges in self.bands.values()):
            raise ValueError("bands: expected ascending edges")
        if self.kind != "regression" and (self.scale != "linear" or self.rank_within or self.value_bands):
            raise ValueError("scale, rank_within and value_bands: expected for a regression only")
        if (self.scale == "rank") != (self.rank_within is not None):
            raise ValueError('rank_within: expected the field whose values are ranked apart, with scale = "rank"')
        if self.taught_share and (self.kind not in ("single", "multi") or self.field in INPUT_FIELDS):
            raise ValueError("taught_share: expected for a single- or multi-label task only, whose field the model does not see")
        if self.asked_only_where_missing and self.field not in INPUT_FIELDS:
            raise ValueError(f"asked_only_where_missing: expected a field the model sees: {', '.join(INPUT_FIELDS)}")
        return self


class TaskFile(_Part):
    bundle: BundleEntry = BundleEntry()
    features: FeatureSettings = FeatureSettings()
    training: TrainingSettings = TrainingSettings()
    task: tuple[TaskEntry, ...] = Field(min_length=1)

    @field_validator("features")
    @classmethod
    def _learn_by_the_newest_scheme(cls, features: FeatureSettings) -> FeatureSettings:
        newest = FeatureSettings().scheme
        if features.scheme != newest:
            raise ValueError(f"scheme: expected {newest}, found {features.scheme}, which is only served")
        return features

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [task.name for task in self.task]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise _at(place, "name", f"the name {name} occurs twice", found=name)
        return self

    @model_validator(mode="after")
    def _leans_on_what_is_there(self) -> Self:
        for place, task in enumerate(self.task):
            if task.leans_on is None:
                continue
            fit = [
                each.name for each in self.task
                if task.kind == "single" and each.kind == "multi" and set(each.sets) == set(task.sets)
                and not {task.field, each.field} & set(INPUT_FIELDS)
            ]  # fmt: skip
            if task.leans_on not in fit:
                here = f"here {', '.join(fit)}" if fit else "here none"
                message = (
                    f"expected for a single-label task a multi-label one of the same sets, no field of which is an input: {here}"
                )
                raise _at(place, "leans_on", message, found=task.leans_on)
        return self


def _at(task: int, field: str, message: str, *, found: str) -> PydanticCustomError:
    """An error that only several tasks together can have, with its place in the file."""
    return PydanticCustomError("task_file", "{message}", {"message": message, "place": ("task", task, field), "found": found})


def load_task_file(path: Path) -> TaskFile:
    """Reads and validates a task file.

    Raises:
        TaskFileError: it cannot be read, is not TOML, or a field is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return TaskFile.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path}: expected a readable task file: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise TaskFileError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        where, line = _place(context.get("place", first["loc"]), text)
        found = str(context.get("found", first["input"]))[:80]
        raise TaskFileError(f"{path}:{line}: {where}: {first['msg']}; found {found}") from error


def _place(location: tuple[int | str, ...], text: str) -> tuple[str, int]:
    """The field in words, and the line of the field or of its section."""
    lines = text.splitlines()
    parts = [str(part) for part in location]
    if location[:1] == ("task",) and len(location) > 1 and isinstance(location[1], int):
        headers = [number for number, line in enumerate(lines) if re.match(r"\s*\[\[\s*task\s*\]\]", line)]
        start = headers[location[1]] if location[1] < len(headers) else 0
        end = headers[location[1] + 1] if location[1] + 1 < len(headers) else len(lines)
        keys, where = parts[2:], f"task {location[1] + 1}" + "".join(f", {part}" for part in parts[2:])
    else:
        start = next((n for n, line in enumerate(lines) if parts and re.match(rf"\s*\[{parts[0]}\]", line)), 0)
        end, keys, where = len(lines), parts[1:], ".".join(parts) or "task file"
    for key in keys[:1]:
        for number in range(start, end):
            if re.match(rf"\s*\[?{re.escape(key)}\b", lines[number]) or f".{key}" in lines[number]:
                return where, number + 1
    return where, start + 1


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its label set settled.

    Attributes:
        rank_sizes: for scale "rank", the largest rank of each value of `rank_within` in the training rows.
        spellings: for a task on authors, order-free key of a name to its label.
    """

    entry: TaskEntry
    labels: tuple[str, ...] = ()
    rank_sizes: dict[str, float] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.entry.name

    @classmethod
    def from_provenance(cls, values: Mapping[str, Any], *, labels: tuple[str, ...]) -> "Task":
        """Reads what training left in the manifest's settings."""
        return cls(
            # What an earlier version noted of its training is passed over.
            entry=TaskEntry.model_validate(
                {key: value for key, value in values["entry"].items() if key in TaskEntry.model_fields}
            ),
            labels=labels,
            rank_sizes=dict(values["rank_sizes"]),
            spellings=dict(values["spellings"]),
        )

    @property
    def hidden_input(self) -> str | None:
        """The input field that this task's label is read from: never shown together with the label."""
        return self.entry.field if self.entry.field in INPUT_FIELDS else None

    @property
    def width(self) -> int:
        """Columns of the head's output; a regression's first is the value, those after it are of its bands."""
        if self.entry.kind == "regression":
            return 1 + (len(self.edges) + 1 if self.edges else 0)
        return len(self.labels)

    @property
    def edges(self) -> tuple[float, ...]:
        """The edges of `value_bands` in the head's own scale."""
        return tuple(math.log(edge) if self.entry.scale == "log" else edge for edge in self.entry.value_bands)

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """For an ordinal task, currency to (first label, one past the last)."""
        groups, first = {}, 0
        for key, edges in self.entry.bands.items():
            groups[key] = (first, first + len(edges) + 1)
            first += len(edges) + 1
        return groups

    def spec(self, *, thresholds: tuple[float, ...] = ()) -> TaskSpec:
        """What the manifest says of this task."""
        asked = self.entry.field if self.entry.asked_only_where_missing else None
        return TaskSpec.model_validate(
            {
                "name": self.name,
                "kind": self.entry.kind,
                "labels": self.labels,
                "thresholds": thresholds,
                "group_field": "currency" if self.entry.kind == "ordinal" else None,
                "groups": self.groups,
                "asked_only_where_missing": asked,
                "top_k": self.entry.top_k,
            }
        )


def tasks_of(manifest: Manifest) -> list[Task]:
    """The tasks as they were when the bundle was trained, to read labels with."""
    return [Task.from_provenance(manifest.settings["tasks"][spec.name], labels=spec.labels) for spec in manifest.tasks]


def name_key(name: str) -> str:
    """An author's name without order, case and punctuation: "Dickens, Charles" is "Charles Dickens"."""
    return " ".join(sorted(re.findall(r"\w+", name.casefold())))


def label_texts(task: TaskEntry, row: Mapping[str, Any]) -> list[str]:
    """The labels a row states for a task, as text, before any label set is applied."""
    value = row.get(task.field)
    if value is None or value in ("", []):
        return []
    if task.field == "language":
        return [language_code(str(value))]
    if isinstance(value, list):
        return [str(entry) for entry in (value if task.kind == "multi" else value[:1])]
    return [str(value)]


def band_labels(bands: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    """`USD <8.43`, `USD 8.43-11.16`, … `USD >=21.25`."""
    labels: list[str] = []
    for key, edges in bands.items():
        shown = [f"{edge:g}" for edge in edges]
        middle = [f"{key} {low}-{high}" for low, high in pairwise(shown)]
        labels += [f"{key} <{shown[0]}", *middle, f"{key} >={shown[-1]}"]
    return tuple(labels)


def resolve(entry: TaskEntry, rows_by_set: Mapping[str, Iterable[Mapping[str, Any]]]) -> Task:
    """Settles a task's label set on the training rows.

    Raises:
        TaskFileError: one of its sets was not given, or no row has a label.
    """
    if missing := [name for name in entry.sets if name not in rows_by_set]:
        raise TaskFileError(
            f"task {entry.name}: expected the data of {', '.join(entry.sets)}, found no folder {', '.join(missing)}"
        )
    if entry.kind == "ordinal":
        return Task(entry=entry, labels=band_labels(entry.bands))
    if entry.kind == "regression":
        return Task(entry=entry, rank_sizes=_rank_sizes(entry, rows_by_set))
    spellings = _spellings(entry, rows_by_set)
    counts = {
        name: Counter(spellings.get(name_key(text), text) for row in rows_by_set[name] for text in label_texts(entry, row))
        for name in entry.sets
    }
    labels = _chosen(entry.labels, counts)
    if len(labels) < 2:
        raise TaskFileError(f"task {entry.name}: expected at least 2 labels in field {entry.field}, found {labels}")
    return Task(entry=entry, labels=labels, spellings={key: s for key, s in spellings.items() if s in set(labels)})


def _chosen(rule: LabelRule, counts: Mapping[str, Counter[str]]) -> tuple[str, ...]:
    total: Counter[str] = Counter()
    for of_set in counts.values():
        kept = Counter({label: n for label, n in of_set.items() if label not in rule.exclude})
        # Ties are broken by the label, so that the choice does not depend on the order of the rows.
        commonest = sorted(kept.items(), key=lambda item: (-item[1], item[0]))[: rule.commonest_per_set]
        total.update(dict(commonest))
    labels = sorted(label for label, n in total.items() if n >= rule.min_rows)
    if rule.other is not None and rule.other not in labels:
        labels.append(rule.other)
    return tuple(labels)


def _spellings(entry: TaskEntry, rows_by_set: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, str]:
    if entry.field != "authors":
        return {}
    found: dict[str, Counter[str]] = {}
    for name in entry.sets:
        for row in rows_by_set[name]:
            for text in label_texts(entry, row):
                found.setdefault(name_key(text), Counter())[text] += 1
    # A shop's page says "Charles Dickens", a catalogue "Dickens, Charles": the first is shown where it occurs.
    return {key: min(names, key=lambda s: ("," in s, -names[s], s)) for key, names in found.items()}


def _rank_sizes(entry: TaskEntry, rows_by_set: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, float]:
    sizes: dict[str, float] = {}
    if entry.rank_within is not None:
        for name in entry.sets:
            for row in rows_by_set[name]:
                key, value = row.get(entry.rank_within), row.get(entry.field)
                if key is not None and value is not None:
                    sizes[str(key)] = max(sizes.get(str(key), 0.0), float(value))
    return sizes
