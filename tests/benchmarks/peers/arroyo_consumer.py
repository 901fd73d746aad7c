"""sentry-arroyo: `BatchStep`, a task on the batch, `UnbatchStep`, `Produce`, commits after delivery."""

import signal
from collections.abc import Mapping, MutableSequence
from datetime import UTC
from types import FrameType

from arroyo.backends.kafka import KafkaConsumer, KafkaPayload, KafkaProducer
from arroyo.backends.kafka.configuration import build_kafka_configuration, build_kafka_consumer_configuration
from arroyo.commit import CommitPolicy
from arroyo.processing import StreamProcessor
from arroyo.processing.strategies import (
    BatchStep,
    CommitOffsets,
    ProcessingStrategy,
    ProcessingStrategyFactory,
    Produce,
    RunTask,
    UnbatchStep,
)
from arroyo.processing.strategies.batching import ValuesBatch
from arroyo.types import BrokerValue, Commit, Message, Partition, Topic, Value

from tests.benchmarks.peers.job import Plan, Record, open_job

plan = Plan.from_environment()
job = open_job(plan)


def enrich(message: Message[ValuesBatch[KafkaPayload]]) -> ValuesBatch[KafkaPayload]:
    records = []
    for one in message.payload:
        assert isinstance(one, BrokerValue)
        stamp_ms = int(one.timestamp.replace(tzinfo=UTC).timestamp() * 1000)
        assert one.payload.key is not None
        records.append(Record(one.payload.key, one.payload.value, one.partition.index, one.offset, stamp_ms))
    out: MutableSequence[Value[KafkaPayload]] = []
    for one, (key, value) in zip(message.payload, job.run(records), strict=True):
        out.append(Value(KafkaPayload(key, value, []), one.committable, one.timestamp))
    return out


class Factory(ProcessingStrategyFactory[KafkaPayload]):
    def __init__(self, producer: KafkaProducer) -> None:
        self._producer = producer

    def create_with_partitions(self, commit: Commit, _: Mapping[Partition, int]) -> ProcessingStrategy[KafkaPayload]:
        produce = Produce(self._producer, Topic(plan.output_topic), CommitOffsets(commit))
        unbatch = UnbatchStep(produce)
        return BatchStep(plan.batch, plan.commit_ms / 1000, RunTask(enrich, unbatch))


def main() -> None:
    configuration = build_kafka_configuration({}, bootstrap_servers=[plan.bootstrap_servers])
    producer = KafkaProducer({**configuration, "compression.type": "lz4"})
    consumer = KafkaConsumer(
        build_kafka_consumer_configuration(
            {}, bootstrap_servers=[plan.bootstrap_servers], group_id=plan.group, auto_offset_reset="earliest"
        )
    )
    policy = CommitPolicy(plan.commit_ms / 1000, None)
    processor = StreamProcessor(consumer, Topic(plan.input_topic), Factory(producer), policy)

    def stop(_: int, __: FrameType | None) -> None:
        processor.signal_shutdown()

    signal.signal(signal.SIGTERM, stop)
    processor.run()
    producer.close()


if __name__ == "__main__":
    main()
