"""What the pipeline needs of the world outside. The edges fulfil it, and so do the fakes of the tests."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from consumer.batches import Partition
from consumer.records import Enriched, InputRecord, OutputRecord, State
from consumer.schemas import ParsedSchema, UnknownSchema


class Source(Protocol):
    """What the pipeline needs of the reading side; `kafka.KafkaSource` says what each call does."""

    def poll(self, *, records_max: int, idle_s: float, linger_s: float) -> list[InputRecord]: ...
    def keep_alive(self) -> None: ...
    def generation(self, partition: Partition) -> int | None: ...
    def rewind(self) -> None: ...
    def committed(self, positions: Mapping[Partition, int]) -> None: ...
    def lag(self) -> dict[int, int]: ...


class Delivery(Protocol):
    """What the pipeline needs of the writing side; see `delivery.ExactlyOnce`."""

    def send(self, outputs: Iterable[OutputRecord]) -> None: ...
    def commit(self, positions: Mapping[Partition, int]) -> None: ...
    def abort(self) -> bool: ...


class Store(Protocol):
    """What the pipeline needs of the store; see `prediction_store.PredictionStore`."""

    def unchanged(self, expected: Mapping[str, str], *, model_epoch: int) -> dict[str, Enriched]: ...
    def write(self, states: Sequence[State], *, now_ms: int) -> list[State]: ...


class Schemas(Protocol):
    """What the pipeline needs of the registry; see `schema_registry.SchemaRegistry`."""

    def schemas(self, ids: Collection[int]) -> dict[int, ParsedSchema | UnknownSchema]: ...
