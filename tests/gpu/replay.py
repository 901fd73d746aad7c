"""The engine alone: its passes replayed on what lies in the GPU's memory, nothing copied; one line of JSON.

Every slot of the backend computes in turn, as it does with copies, so that the two rates differ by the copies alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from build_engine.cache import EngineCache
from build_engine.errors import EngineError
from build_engine.job import Job
from consumer.inference.tensorrt import TensorRtBackend, open_engine
from model.bundle import Bundle

_WARM_UP_S = 0.2
_PASSES_QUEUED = 16  # for each slot before its stream is waited for: the host must not be the bound


def replay(job: Job, plan: bytes, *, seconds: float) -> dict[str, Any]:
    """Rows/s with the batch that the engine was tuned for."""
    backend = open_engine(plan, job.bundle.manifest, flavour=job.flavour.name)
    try:
        # The service has no use for passes without copies, so the backend has no name for them.
        batch, slots = backend._ports.sizes[-1], backend._slots
        index = np.arange(batch * len(slots)) % len(job.rows)
        backend.infer({name: array[index] for name, array in job.rows.features.as_feed().items()})
        _passes(backend, min(seconds, _WARM_UP_S))
        passes, taken_s = _passes(backend, seconds)
    finally:
        backend.close()
    return {"batch": batch, "slots": len(slots), "passes": passes, "rows_per_s": batch * passes / taken_s}


def _passes(backend: TensorRtBackend, seconds: float) -> tuple[int, float]:
    """How many passes, in how many seconds."""
    passes, begun_s = 0, time.perf_counter()
    while not passes or time.perf_counter() - begun_s < seconds:
        for _ in range(_PASSES_QUEUED):
            for slot in backend._slots:
                if not slot._context.execute_async_v3(slot.lane.stream):
                    raise EngineError("TensorRT refused a pass that is replayed: " + "; ".join(backend._lines))
        for slot in backend._slots:
            slot.lane.synchronize()
        passes += _PASSES_QUEUED * len(backend._slots)
    return passes, time.perf_counter() - begun_s


def main() -> None:
    """Takes the engine from the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp16", "fp32"), required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    job = Job.on_this_gpu(Bundle.load(arguments.bundle), arguments.precision, flavour="auto")
    cache = EngineCache(arguments.cache, size_max_bytes=10 << 30, lock_timeout_s=60, say=print)
    with job.cached(cache) as engine:
        found = replay(job, engine.plan, seconds=arguments.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
