"""bytewax: `flat_map_batch` hands over what the source read at once; positions are kept by its recovery store."""

from collections.abc import Iterable

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow

from tests.benchmarks.peers.job import Plan, Record, open_job

plan = Plan.from_environment()
job = open_job(plan)


def enrich(messages: list[KafkaSourceMessage]) -> Iterable[KafkaSinkMessage]:
    for start in range(0, len(messages), plan.batch):
        records = [
            Record(one.key, one.value, one.partition, one.offset, one.timestamp[1])
            for one in messages[start : start + plan.batch]
        ]
        for key, value in job.run(records):
            yield KafkaSinkMessage(key, value)


flow = Dataflow("enrich")
read = op.input("read", flow, KafkaSource([plan.bootstrap_servers], [plan.input_topic], tail=True, batch_size=plan.batch))
enriched = op.flat_map_batch("enrich", read, enrich)
op.output("write", enriched, KafkaSink([plan.bootstrap_servers], plan.output_topic, add_config={"compression.type": "lz4"}))
