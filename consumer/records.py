"""The values that flow through the pipeline, in the order in which they come to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from consumer.task_prediction import TaskPrediction
from model.listing import Listing

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One record as it was read, bytes untouched. `timestamp_ms` is the record's own, since the epoch."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Headers
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Change:
    """A decoded record: the listing as it is now, or its deletion (`listing` is None)."""

    record: InputRecord
    listing_id: str
    version: int
    listing: Listing | None

    @property
    def stated(self) -> Listing:
        """The listing of a change that is no deletion."""
        assert self.listing is not None
        return self.listing


class Stage(StrEnum):
    """Where a record was rejected; `dlq.stage` of a dead letter.

    TRIAL: it ended the child process that tried it, and no one knows in which stage.
    """

    DECODE = "decode"
    COVER = "cover"
    FEATURES = "features"
    INFERENCE = "inference"
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be enriched, with the reason a person can act on."""

    record: InputRecord
    stage: Stage
    reason: str


class Outcome(StrEnum):
    """How an enriched event came about.

    PREDICTED: the model ran. REUSED: what the model sees has not changed since its last run, so that run's result stands.
    SUPERSEDED: the store (or a later record of the same batch) holds a newer version, whose content this event repeats.
    """

    PREDICTED = "PREDICTED"
    REUSED = "REUSED"
    SUPERSEDED = "SUPERSEDED"


class CoverUse(StrEnum):
    """Whether a prediction saw the listing's cover. MISSING: it names one by URL that could not be had in time."""

    NONE = "NONE"
    USED = "USED"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model speaks. A higher `epoch` may rewrite what a lower one wrote for the same listing version.

    `engine`: fingerprint of the TensorRT engine that runs it, or None.
    """

    name: str
    version: str
    epoch: int
    engine: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Enriched:
    """A listing's predictions at one version.

    Attributes:
        content: hash of what the model saw, hex; empty, which no hash equals, where that should not be reused.
        predictions: task name to answer.
        model: `name@version`.
        engine: fingerprint of the TensorRT engine that made the predictions; None where ONNX Runtime did.
    """

    listing_id: str
    version: int
    content: str
    predictions: Mapping[str, TaskPrediction]
    model: str
    model_epoch: int
    cover: CoverUse = CoverUse.NONE
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A listing that was deleted at `version`."""

    listing_id: str
    version: int


State = Enriched | Tombstone


@dataclass(frozen=True, slots=True)
class Answer:
    """What one input record is answered with: a state on the enriched topic (a tombstone is a null value)."""

    record: InputRecord
    outcome: Outcome
    state: State


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One record to produce."""

    topic: str
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Headers
    partition: int | None = None
