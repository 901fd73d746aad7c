"""quixstreams: a batching sink, the documented way to work on many records at a time; the checkpoint flushes it."""

from confluent_kafka import Producer
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from tests.benchmarks.peers.job import Job, Plan, Record, open_job

PARTITIONS = 4


class EnrichingSink(BatchingSink):
    def __init__(self, plan: Plan, job: Job) -> None:
        super().__init__()
        self._plan, self._job = plan, job
        self._producer = Producer({"bootstrap.servers": plan.bootstrap_servers, "compression.type": "lz4"})

    def write(self, batch: SinkBatch) -> None:
        for chunk in batch.iter_chunks(self._plan.batch):
            records = [Record(item.key, item.value, batch.partition, item.offset, item.timestamp) for item in chunk]
            for key, value in self._job.run(records):
                self._producer.produce(self._plan.output_topic, value, key)
            self._producer.poll(0)

    def flush(self) -> None:
        super().flush()
        self._producer.flush()  # the checkpoint commits after this


def main() -> None:
    plan = Plan.from_environment()
    app = Application(
        plan.bootstrap_servers,
        consumer_group=plan.group,
        auto_offset_reset="earliest",
        commit_interval=plan.commit_ms / 1000,
        commit_every=plan.batch * PARTITIONS,
        loglevel="WARNING",
        auto_create_topics=False,
    )
    topic = app.topic(plan.input_topic, key_deserializer="bytes", value_deserializer="bytes")
    app.dataframe(topic).sink(EnrichingSink(plan, open_job(plan)))
    app.run()


if __name__ == "__main__":
    main()
