"""A batch at each point of its way, and how one is cut."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer import codec
from consumer.prediction import Prepared
from consumer.records import Answer, Change, CoverUse, InputRecord, Outcome, OutputRecord, Rejected, State
from consumer.schemas import ParsedSchema
from consumer.traces import BatchTrace

if TYPE_CHECKING:  # it brings ONNX Runtime, which commands without a model do not need
    from consumer.serving import ServedModel

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where answers and dead letters go, and in which schema.

    `keep_partition`: the enriched topic has as many partitions as the input, so an answer stays in its record's partition.
    """

    enriched_topic: str
    schema: ParsedSchema
    keep_partition: bool
    dead_letter_topic: str
    dead_letter_bytes_max: int | None = None
    batch_bytes_max: int | None = None  # the least `max.message.bytes` of the two topics

    def records(
        self, answers: Sequence[Answer], rejected: Sequence[Rejected], *, enriched_at_ms: int, trace: BatchTrace
    ) -> list[OutputRecord]:
        """What is to be produced for a batch: an enriched record for each answer, then the dead letters."""
        records = [
            codec.enriched_record(
                answer,
                topic=self.enriched_topic,
                schema=self.schema,
                enriched_at_ms=enriched_at_ms,
                partition=answer.record.partition if self.keep_partition else None,
            )
            for answer in answers
        ]
        return trace.onto(records) + [  # a dead letter's headers are its original's
            codec.dead_letter(one, topic=self.dead_letter_topic, bytes_max=self.dead_letter_bytes_max) for one in rejected
        ]


@dataclass(slots=True)
class Batch:
    """What is known of a batch so far.

    Attributes:
        model: the one that makes its features and its predictions; another may serve the batch before or after it.
        changes: decoded records that were not rejected, in the order read.
        proposed: listing id to what should be written for it; deletions and reuse by `prepare`, the rest by `predict`.
        unseen: what the model must look at, with its features.
        contents: listing id to the hash of what the model sees; empty where a cover is missing, so that it is not reused.
        covers: listing id to whether the model sees its cover.
    """

    model: "ServedModel"
    changes: list[Change]
    rejected: list[Rejected]
    proposed: dict[str, tuple[Outcome, State]]
    unseen: Prepared
    contents: dict[str, str]
    covers: dict[str, CoverUse]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch on its way, with the generation that each of its partitions had when it was read."""

    records: list[InputRecord]
    generations: dict[Partition, int | None]
    batch: "Future[Batch]"
    trace: BatchTrace


def split_by_cost(records: Sequence[InputRecord], cost_max: int) -> list[list[InputRecord]]:
    """Cuts a batch where the bytes of its values would exceed `cost_max`; a larger record stands alone. Order is kept."""
    batches: list[list[InputRecord]] = []
    cost = 0
    for record in records:
        size = len(record.value or b"")
        if not batches or cost + size > cost_max:
            batches.append([])
            cost = 0
        batches[-1].append(record)
        cost += size
    return batches


def partition_of(record: InputRecord) -> Partition:
    """Topic and partition that a record was read from."""
    return (record.topic, record.partition)


def without_answer(batch: Batch) -> list[Change]:
    """Takes the rejected records out of the batch's changes; returns those of listings that have no answer yet."""
    gone = {id(one.record) for one in batch.rejected}
    batch.changes = [change for change in batch.changes if id(change.record) not in gone]
    return [change for change in batch.changes if change.listing_id not in batch.proposed]
