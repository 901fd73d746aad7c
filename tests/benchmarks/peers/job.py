"""What every peer does with a batch of listings; only how it reads, batches, overlaps, writes out and commits is its own.

`ordinary` is what a person writes who has the model and the usual libraries: fastavro, json, a Redis pipeline.
`ours` calls this project's own functions for a whole batch, so that only the runner differs.
Both decode, extract features with the bundle's extractor, run the same ONNX session and answer with the same labels.
"""

import io
import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fastavro
import numpy as np
import redis
from numpy.typing import NDArray

from consumer import codec
from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.prediction import Predictor
from consumer.prediction_store import PredictionStore
from consumer.records import Answer, Change, Enriched, InputRecord, Outcome
from consumer.schemas import ParsedSchema
from model.bundle import Bundle, TaskSpec
from model.listing import Listing, listing_from_mapping

_FRAME = struct.Struct(">bI")


@dataclass(frozen=True, slots=True)
class Record:
    """A record as every peer can hand it over."""

    key: bytes
    value: bytes
    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True)
class Plan:
    """What a peer is told, by one variable of its environment."""

    bootstrap_servers: str
    input_topic: str
    output_topic: str
    group: str
    batch: int
    commit_ms: int
    job: str
    bundle: str
    redis_url: str
    redis_prefix: str
    input_schema: Any
    input_schema_id: int
    output_schema: Any
    output_schema_id: int

    @classmethod
    def from_environment(cls) -> "Plan":
        return cls(**json.loads(Path(os.environ["PEER_PLAN"]).read_text(encoding="utf-8")))


class Job(Protocol):
    """A batch of records to their enriched events; Redis holds the predictions when it returns."""

    def run(self, records: Sequence[Record]) -> list[tuple[bytes, bytes]]: ...


def open_job(plan: Plan) -> Job:
    """The job that the plan names."""
    return {"ordinary": OrdinaryJob, "ours": OurJob}[plan.job](plan)


class OrdinaryJob:
    def __init__(self, plan: Plan) -> None:
        bundle = Bundle.load(Path(plan.bundle))
        self._plan = plan
        self._tasks = bundle.manifest.tasks
        self._manifest = bundle.manifest
        self._extractor = bundle.extractor()
        self._backend = OnnxRuntimeBackend(bundle.graph_path, threads=1)
        self._input = fastavro.parse_schema(plan.input_schema)
        self._output = fastavro.parse_schema(plan.output_schema)
        self._frame = _FRAME.pack(0, plan.output_schema_id)
        self._redis = redis.Redis.from_url(plan.redis_url)

    def run(self, records: Sequence[Record]) -> list[tuple[bytes, bytes]]:
        rows: list[Any] = [
            fastavro.schemaless_reader(io.BytesIO(record.value[_FRAME.size :]), self._input, None) for record in records
        ]
        listings = [listing_from_mapping(row, default_version=1) for row in rows]
        outputs = self._backend.infer(self._extractor.extract(listings, [None] * len(listings)).as_feed())
        now_ms = time.time_ns() // 1_000_000
        pipeline = self._redis.pipeline(transaction=False)
        answers = []
        for row, (record, listing) in enumerate(zip(records, listings, strict=True)):
            found = predictions(outputs, row, listing, self._tasks)
            event = {
                "listing_id": listing.listing_id,
                "version": listing.version,
                "outcome": "PREDICTED",
                "cover": "NONE",
                "predictions": found,
                "model_name": self._manifest.name,
                "model_version": self._manifest.version,
                "model_epoch": self._manifest.epoch,
                "source_topic": self._plan.input_topic,
                "source_partition": record.partition,
                "source_offset": record.offset,
                "enriched_at": now_ms,
            }
            fields = {task: json.dumps(prediction, ensure_ascii=False) for task, prediction in found.items()}
            pipeline.hset(f"{self._plan.redis_prefix}{{{listing.listing_id}}}", mapping={"_version": listing.version, **fields})
            stream = io.BytesIO()
            stream.write(self._frame)
            fastavro.schemaless_writer(stream, self._output, event)
            answers.append((record.key, stream.getvalue()))
        pipeline.execute()
        return answers


def predictions(
    outputs: Mapping[str, NDArray[Any]], row: int, listing: Listing, tasks: Sequence[TaskSpec]
) -> dict[str, dict[str, Any]]:
    """The answers for one listing, by plain numpy."""
    found = {}
    for task in tasks:
        if task.asked_only_where_missing and getattr(listing, task.asked_only_where_missing):
            continue
        scores = outputs[task.name][row].astype(np.float64)
        if task.kind == "regression":
            value, low, high = scores.round(4).tolist()
            found[task.name] = {"labels": [], "value": value, "low": low, "high": high}
            continue
        if task.group_field and (stated := getattr(listing, task.group_field)):
            group = task.groups.get(stated.upper())
            if group is None:
                continue
            inside = np.zeros_like(scores)
            inside[group[0] : group[1]] = scores[group[0] : group[1]]
            scores = inside / inside.sum()
        if task.kind == "multi":
            order = np.argsort(-scores.round(4), kind="stable")  # of labels that are given as equal the earlier first
            best = [label for label in order if scores[label] >= task.thresholds[label]]
        else:
            order = np.argsort(-scores, kind="stable")
            best = [label for label in order[: task.top_k] if scores[label] > 0]
        labels = [{"label": task.labels[label], "confidence": round(float(scores[label]), 4)} for label in best]
        found[task.name] = {"labels": labels, "value": None, "low": None, "high": None}
    return found


class OurJob:
    def __init__(self, plan: Plan) -> None:
        bundle = Bundle.load(Path(plan.bundle))
        self._plan = plan
        self._predictor = Predictor(bundle, OnnxRuntimeBackend(bundle.graph_path, threads=1), cover_bytes_max=1 << 20)
        self._schemas = {plan.input_schema_id: ParsedSchema(plan.input_schema_id, fastavro.parse_schema(plan.input_schema))}
        self._output = ParsedSchema(plan.output_schema_id, fastavro.parse_schema(plan.output_schema))
        self._store = PredictionStore(plan.redis_url, key_prefix=plan.redis_prefix, ttl_seconds=None)

    def run(self, records: Sequence[Record]) -> list[tuple[bytes, bytes]]:
        plan, identity = self._plan, self._predictor.identity
        read = [
            InputRecord(plan.input_topic, one.partition, one.offset, one.key, one.value, (), one.timestamp_ms) for one in records
        ]
        changes = [one for record in read if isinstance(one := codec.decode(record, self._schemas), Change)]
        prepared, _ = self._predictor.prepare(changes)
        answered, _ = self._predictor.predict(prepared)
        states = [
            (change, Enriched(change.listing_id, change.version, "", found, str(identity), identity.epoch))
            for change, found in answered
        ]
        now_ms = time.time_ns() // 1_000_000
        self._store.write([state for _, state in states], now_ms=now_ms)
        out = []
        for change, state in states:
            answer = Answer(change.record, Outcome.PREDICTED, state)
            record = codec.enriched_record(
                answer, topic=plan.output_topic, schema=self._output, enriched_at_ms=now_ms, partition=None
            )
            assert record.key is not None
            assert record.value is not None
            out.append((record.key, record.value))
        return out
