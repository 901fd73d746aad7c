"""Events/s of the whole service over listings that wait on the broker, and what limits it; one line of JSON.

The clock runs from the first answer to the last. The service's threads share one interpreter: the seconds of a stage contain its
waits for the others, so beside them stand the cores that the process used. Where that is near 1, it is the interpreter that
limits, and the stage that is named the one that asks most of it.
"""

import json
import resource
import time
from collections import Counter
from typing import Any

from consumer.inference.tensorrt import TensorRtBackend
from tests.gpu.shop import Failed, Shop, editions, model_settings, open_shop, shop_parser

# By the thread they run on; "infer" is split into the pass through the engine and what is made of its outputs.
THREADS = {
    "prepare": ("decode", "known", "covers", "features"),
    "backend": ("infer: engine", "infer: answers"),
    "main": ("store", "produce", "commit"),
}
ENGINE = "infer: engine"


class EngineClock:
    """Seconds in `infer` of every TensorRT backend of this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        infer = TensorRtBackend.infer

        def timed(backend: TensorRtBackend, inputs: Any) -> Any:
            begun_s = time.perf_counter()
            try:
                return infer(backend, inputs)
            finally:
                self.seconds += time.perf_counter() - begun_s

        TensorRtBackend.infer = timed  # type: ignore[method-assign]


def stage_seconds(shop: Shop, clock: EngineClock) -> dict[str, float]:
    """What each stage took until now."""
    registry = shop.service.metrics.registry
    names = [name for stages in THREADS.values() for name in stages if not name.startswith("infer")]
    found = {name: registry.get_sample_value("enricher_stage_seconds_sum", {"stage": name}) or 0.0 for name in (*names, "infer")}
    infer = found.pop("infer")
    return {**found, ENGINE: clock.seconds, "infer: answers": max(0.0, infer - clock.seconds)}


def limit(stages: dict[str, float]) -> str:
    """The longest stage of the busiest thread."""
    thread = max(THREADS, key=lambda name: sum(stages[stage] for stage in THREADS[name]))
    stage = max(THREADS[thread], key=stages.__getitem__)
    return f"the GPU's stage, {stage}" if stage == ENGINE else f"the CPU stage {stage}"


def measure(shop: Shop, listings: int, *, covers: bool) -> dict[str, Any]:
    """Raises: Failed: an answer is missing, double or a dead letter."""
    clock = EngineClock()
    with_cover = 0
    for _, listing in zip(range(listings), editions(covers=covers), strict=False):
        shop.publisher.publish(listing.values, listing.cover)
        with_cover += listing.cover is not None
    shop.publisher.flush()
    with shop.serving():
        shop.wait(lambda: shop.done() > 0, "a first answer")
        first, begun_s, cpu_s, before = shop.done(), time.perf_counter(), _cpu_seconds(), stage_seconds(shop, clock)
        shop.wait(lambda: shop.done() >= listings, f"{listings} answers")
        seconds, cores = time.perf_counter() - begun_s, _cpu_seconds() - cpu_s
        stages = {name: total - before[name] for name, total in stage_seconds(shop, clock).items()}
    require_one_answer_each(shop, listings)
    return {
        "listings": listings,
        "with_cover": with_cover,
        "seconds": seconds,
        "events_per_s": (listings - first) / seconds,
        "limited_by": limit(stages),
        "stage_seconds": stages,
        "thread_busy": {name: sum(stages[stage] for stage in each) / seconds for name, each in THREADS.items()},
        "cores_used": cores / seconds,
    }


def require_one_answer_each(shop: Shop, listings: int) -> None:
    """Raises: Failed."""
    answers = shop.answers(listings)
    doubled = sum(times - 1 for times in Counter(answer.source for answer in answers).values())
    dead = sum(answer.dead for answer in answers)
    if doubled or dead or len(answers) != listings:
        raise Failed(f"expected {listings} answers, found {len(answers)}, {doubled} of them doubled and {dead} dead letters")
    if not (event := shop.event(answers[-1]))["engine"]:
        raise Failed(f"expected the events to name the engine, found {event['model_name']} without one")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Starts everything, measures, prints."""
    parser = shop_parser(__doc__)
    parser.add_argument("--listings", type=int, required=True)
    parser.add_argument("--covers", action="store_true", help="of those listings that have one")
    arguments = parser.parse_args()
    with open_shop(model_settings(arguments)) as shop:
        found = measure(shop, arguments.listings, covers=arguments.covers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
