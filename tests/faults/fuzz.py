"""A million broken events through decoding, covers and features: `python -m tests.faults.fuzz --count 1000000 --seed 1`.

In processes of their own, so that a crash is seen as one. Every event must become a change with features, or a rejected record
with its reason; none may take longer than a second or 256 MB. A case that fails comes again with `--seed S --first N --count 1`.
"""

import argparse
import json
import os
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from consumer import codec
from consumer.prediction import Predictor
from consumer.records import Change, InputRecord, Rejected
from consumer.schema_registry import UnknownSchema
from consumer.settings import Settings
from model.bundle import Bundle
from tests.examples import ENVELOPE_SCHEMA, LISTING_SCHEMA
from tests.faults.mutate import Case, Mutator

CHUNK = 5_000
BATCH = 250
SCHEMAS = {schema.schema_id: schema for schema in (LISTING_SCHEMA, ENVELOPE_SCHEMA)}
UNKNOWN = UnknownSchema(0, "the fuzzer knows no such schema")
SECONDS_MAX, MEGABYTES_MAX = 1.0, 256.0
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "fuzz.json"


@dataclass
class Found:
    """What a chunk showed. `slowest` is seconds and the case's number."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    megabytes: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.outcomes.update(other.outcomes)
        self.slowest = max(self.slowest, other.slowest)
        self.megabytes = max(self.megabytes, other.megabytes)
        self.failures += other.failures


class NoBackend:
    """Nothing is inferred here."""

    name = "none"
    engine = None

    def infer(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
        raise NotImplementedError

    def close(self) -> None: ...


def open_predictor() -> Predictor:
    """The shipped bundle's features, with the service's limits."""
    settings = Settings()
    return Predictor(Bundle.load(settings.model.bundle), NoBackend(), cover_bytes_max=settings.covers.max_bytes)


def peak_megabytes() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(seed: int, first: int, count: int) -> Found:
    """Cases `first` to `first + count`, in batches as the service takes them."""
    predictor = _predictor()
    mutator, found = Mutator(seed, LISTING_SCHEMA, ENVELOPE_SCHEMA), Found()
    for start in range(first, first + count, BATCH):
        cases = [mutator.case(number) for number in range(start, min(start + BATCH, first + count))]
        changes: list[Change] = []
        for case in cases:
            began_s = time.perf_counter()
            decoded = _decoded(case, found)
            found.slowest = max(found.slowest, (time.perf_counter() - began_s, case.number))
            if isinstance(decoded, Rejected):
                _count(decoded, found)
            elif decoded is not None and decoded.listing is None:
                found.outcomes["deleted"] += 1
            elif decoded is not None:
                changes.append(decoded)
        _prepare(predictor, changes, found)
    found.megabytes = peak_megabytes() - _loaded_megabytes()
    return found


def _decoded(case: Case, found: Found) -> Change | Rejected | None:
    record = InputRecord("fuzz", 0, case.number, case.key, case.value, case.headers, 1_700_000_000_000)
    try:
        codec_ids = codec.schema_ids([record])
        return codec.decode(record, {one: SCHEMAS.get(one, UNKNOWN) for one in codec_ids})
    except Exception as error:  # noqa: BLE001  what a fuzzer looks for
        found.failures.append(f"case {case.number} {case.done}: {type(error).__name__}: {error}")
        return None


def _prepare(predictor: Predictor, changes: list[Change], found: Found) -> None:
    began_s = time.perf_counter()
    try:
        prepared, rejected = predictor.prepare(changes)
    except Exception as error:  # noqa: BLE001
        found.failures.append(f"a batch from {changes[0].record.offset}: {type(error).__name__}: {error}")
        return
    seconds = time.perf_counter() - began_s
    if seconds > SECONDS_MAX / 4:  # which one was it?
        for change in changes:
            began_s = time.perf_counter()
            predictor.prepare([change])
            found.slowest = max(found.slowest, (time.perf_counter() - began_s, change.record.offset))
    for one in rejected:
        _count(one, found)
    found.outcomes["enriched"] += len(prepared.changes)
    if len(prepared.changes) + len(rejected) != len(changes):
        found.failures.append(f"a batch from {changes[0].record.offset}: {len(changes)} changes, but not as many answers")


def _count(rejected: Rejected, found: Found) -> None:
    found.outcomes[f"rejected: {rejected.stage.value}"] += 1
    if not rejected.reason.strip():
        found.failures.append(f"case {rejected.record.offset}: rejected without a reason")


@cache
def _predictor() -> Predictor:
    """One for each process."""
    predictor = open_predictor()
    _loaded_megabytes()
    return predictor


@cache
def _loaded_megabytes() -> float:
    """The peak when the bundle was loaded and no case was made yet."""
    return peak_megabytes()


def main() -> None:
    """Fuzzes, writes the figures and ends with 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    total, began_s = Found(), time.perf_counter()
    end = arguments.first + arguments.count
    with ProcessPoolExecutor(arguments.workers) as pool, Progress() as progress:
        bar = progress.add_task("cases", total=arguments.count)
        chunks = {pool.submit(fuzz, arguments.seed, at, min(CHUNK, end - at)): at for at in range(arguments.first, end, CHUNK)}
        for done in as_completed(chunks):
            total.add(done.result())  # BrokenProcessPool: a process died, which is a crash
            progress.advance(bar, min(CHUNK, end - chunks[done]))
    if total.slowest[0] > SECONDS_MAX:
        total.failures.append(f"case {total.slowest[1]} took {total.slowest[0]:.2f} s, at most {SECONDS_MAX:g} are borne")
    if total.megabytes > MEGABYTES_MAX:
        total.failures.append(f"the memory grew by {total.megabytes:.0f} MB, at most {MEGABYTES_MAX:g} are borne")
    result = {
        "seed": arguments.seed,
        "cases": sum(total.outcomes.values()),
        "outcomes": dict(total.outcomes.most_common()),
        "failures": total.failures,
        "slowest_s": round(total.slowest[0], 4),
        "slowest_case": total.slowest[1],
        "memory_growth_mb": round(total.megabytes, 1),  # of a worker over all its cases
        "workers": arguments.workers,
        "seconds": round(time.perf_counter() - began_s, 1),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    raise SystemExit(1 if total.failures else 0)


if __name__ == "__main__":
    main()
