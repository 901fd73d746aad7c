"""The service against its parts, in one run: `make bench`; `--check` holds the ratios against the committed ones.

Contestants over the same real listings, on a real Kafka, Redis and registry, interleaved A B C A B C:

    service         `python -m consumer run`, exactly once, the shipped model
    unchanged       the same listings again, another price and version: nothing that the model sees has changed
    at least once   the service with the other guarantee
    two replicas    two processes, two partitions each
    free model      the service with a model that costs nothing
    covers          the same, every listing with a JPEG of 200 x 300; decoding alone beside it
    bare model      the same ONNX session, threads and batch size over arrays that are ready
    bare loop       consume, decode, one guarded write a batch, produce, transaction: no features, no model

Times drift on shared machines: what counts are the ratios, medians over the rounds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from model.bundle import Bundle
from tests.benchmarks.bundles import bundle_of
from tests.benchmarks.contestants import (
    BATCH,
    Figures,
    answered,
    bare_model,
    console,
    decoding,
    newer,
    run_loop,
    run_service,
    with_fresh_outputs,
)
from tests.benchmarks.listings import real_covers, real_listings
from tests.benchmarks.surroundings import own_surroundings
from tests.infrastructure.topics import create_topics
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, read_topic, wait_until

RESULTS = Path(__file__).parent / "results" / "journey.json"
# Ratio: numerator, denominator, figure, what was hoped for. More is better, but for CPU.
RATIOS = {
    "service ÷ bare model": ("service", "bare model", "events_per_s", None),
    "free model ÷ bare loop": ("free model", "bare loop", "events_per_s", 0.8),
    "exactly once ÷ at least once": ("service", "at least once", "events_per_s", 0.9),
    "unchanged ÷ changed": ("unchanged", "service", "events_per_s", 5.0),
    "two replicas ÷ one": ("two replicas", "service", "events_per_s", 1.8),
    "CPU of two replicas ÷ of one": ("two replicas", "service", "cpu_s_per_million", 1.1),
}
COVERS = 200  # different ones
COVERED_SHARE = 4  # a quarter of the listings: a cover is forty times a listing's bytes
_LESS_IS_BETTER = {"CPU of two replicas ÷ of one"}
CHECK_TOLERANCE = 0.25  # what a shared machine does to a median of three


def measure(surroundings: Surroundings, listings: list[dict[str, Any]], rounds: int, free: Bundle) -> dict[str, list[Figures]]:
    """All rounds, interleaved."""
    events = len(listings)
    model = bare_model(listings, Bundle.load(surroundings.settings().model.bundle))
    publish(surroundings, track(listings, description="publishing", console=console))
    again = replace(surroundings, topics=create_topics(surroundings.bootstrap_servers, partitions=4))
    publish(again, track([newer(one) for one in listings], description="publishing again", console=console))
    covered = replace(surroundings, topics=create_topics(surroundings.bootstrap_servers, partitions=4))
    covers = list(islice(cycle(real_covers(COVERS)), events // COVERED_SHARE))
    listed = [{**one, "cover": cover} for one, cover in zip(listings, covers, strict=False)]
    publish(covered, track(listed, description="publishing with covers", console=console))
    answer = _an_answer(surroundings)
    found: dict[str, list[Figures]] = {}

    def note(name: str, figures: Figures) -> None:
        found.setdefault(name, []).append(figures)

    for _ in track(range(rounds), description="rounds", console=console):
        first = with_fresh_outputs(surroundings)
        note("service", run_service(first, events))
        second = replace(with_fresh_outputs(again), redis_prefix=first.redis_prefix)  # on the store that the first one filled
        note("unchanged", run_service(second, events))
        if (reused := found["unchanged"][-1]["reused"]) != events:
            raise SystemExit(f"expected {events} answers that took no model, found {reused:g}: the figure would mean nothing")
        note("at least once", run_service(with_fresh_outputs(surroundings), events, DELIVERY__GUARANTEE="at_least_once"))
        note("two replicas", run_service(with_fresh_outputs(surroundings), events, replicas=2))
        note("free model", run_service(with_fresh_outputs(surroundings), events, MODEL__BUNDLE=str(free.path)))
        note("covers", run_service(with_fresh_outputs(covered), len(covers), MODEL__BUNDLE=str(free.path)))
        note("decoding a cover", decoding(covers, free))
        note("bare model", model())
        note("bare loop", run_loop(with_fresh_outputs(surroundings), events, answer))
    return found


def _an_answer(surroundings: Surroundings) -> bytes:
    """A large enriched event, for what a loop without a model writes."""
    sample = with_fresh_outputs(surroundings)
    with RunningService(sample) as service:
        wait_until(lambda: answered(service) > 0, "a first answer, for its size")
        service.terminate()
    return max((one.value or b"" for one in read_topic(sample.bootstrap_servers, sample.topics.output)[:200]), key=len)


def summary(found: dict[str, list[Figures]], events: int) -> dict[str, Any]:
    """Medians and spread; the ratios round by round."""

    def ratio(one: str, other: str, figure: str) -> dict[str, float]:
        return spread([a[figure] / b[figure] for a, b in zip(found[one], found[other], strict=True)])

    return {
        "events": events,
        "rounds": len(found["service"]),
        "batch": BATCH,
        "contestants": {name: {key: spread([one[key] for one in runs]) for key in runs[0]} for name, runs in found.items()},
        "ratios": {name: ratio(one, other, figure) for name, (one, other, figure, _) in RATIOS.items()},
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("confluent-kafka", "fastavro", "redis", "onnxruntime", "numpy")},
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


def spread(values: list[float]) -> dict[str, float]:
    """What is said of a figure over the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(result: dict[str, Any]) -> None:
    """The tables that the README quotes."""
    table = Table(title=f"{result['events']} listings, {result['rounds']} rounds, medians (min to max)")
    for column in ("", "events/s", "CPU s a million", "MB", "s to the first answer"):
        table.add_column(column)
    for name, figures in result["contestants"].items():
        rate = figures["events_per_s"]
        rest = [(key, form) for key, form in (("cpu_s_per_million", ".0f"), ("memory_mb", ".0f"), ("start_s", ".1f"))]
        shown = [format(figures[key]["median"], form) if key in figures else "" for key, form in rest]
        table.add_row(name, f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})", *shown)
    console.print(table)
    for name, ratio in result["ratios"].items():
        target = RATIOS[name][3]
        hoped = "" if target is None else f", target {'≤' if name in _LESS_IS_BETTER else '≥'} {target}"
        console.print(f"{name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}){hoped}")


def regressions(result: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Ratios that are worse than the committed ones by more than these machines' noise, one line each."""
    lines = []
    for name, former in committed["ratios"].items():
        now, then = result["ratios"][name]["median"], former["median"]
        worse = now / then if name in _LESS_IS_BETTER else then / now
        if worse > 1 + CHECK_TOLERANCE:
            lines.append(f"{name}: {now:.2f}, committed {then:.2f}")
    return lines


def main() -> None:
    """Starts real servers of its own, measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a ratio fell behind the committed one")
    arguments = parser.parse_args()
    with own_surroundings("bench:") as surroundings, tempfile.TemporaryDirectory() as folder:
        free = bundle_of("free", Path(folder))
        found = measure(surroundings, real_listings(arguments.events), arguments.rounds, free)
    result = summary(found, arguments.events)
    show(result)
    if not arguments.check:
        arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif lines := regressions(result, json.loads(RESULTS.read_text(encoding="utf-8"))):
        raise SystemExit("behind the committed ratios:\n  " + "\n  ".join(lines))


if __name__ == "__main__":
    main()
