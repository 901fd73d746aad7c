"""faststream: a batch subscriber and `publish_batch`; each batch is acknowledged once it is published."""

import asyncio

from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker, KafkaPublishMessage
from faststream.confluent.annotations import KafkaMessage

from tests.benchmarks.peers.job import Plan, Record, open_job

plan = Plan.from_environment()
job = open_job(plan)
broker = KafkaBroker(plan.bootstrap_servers, compression_type="lz4", logger=None)


@broker.subscriber(
    plan.input_topic,
    batch=True,
    max_records=plan.batch,
    group_id=plan.group,
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def enrich(_: list[bytes], message: KafkaMessage) -> None:
    raw = message.raw_message
    records = [Record(one.key(), one.value(), one.partition(), one.offset(), one.timestamp()[1]) for one in raw]
    answers = job.run(records)
    await broker.publish_batch(*(KafkaPublishMessage(value, key=key) for key, value in answers), topic=plan.output_topic)


if __name__ == "__main__":
    asyncio.run(FastStream(broker, logger=None).run())
