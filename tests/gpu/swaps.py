"""Models that take over while listings flow; one line of JSON.

Three bundles with the same graph, told apart by how many labels they give. Three of four swaps load one and its engine anew, the
fourth goes back to the former. Failures are counted by kind; all must be 0:

    refused, late    it did not take over, or not within the time
    lost, doubled    an input offset without an answer, or with two
    dead             dead letters
    mixed            an answer whose epoch, version, labels or engine are not those of one model
"""

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from consumer.errors import EnricherError
from tests.faults.bundles import another_bundle, point
from tests.gpu.shop import Shop, editions, model_settings, open_shop, shop_parser

FIRST_EPOCH = 1_000_000
SWAP_S_MAX = 60.0
TICK_S = 0.05
LABELS = {"1.0.0": 3, "2.0.0": 4, "3.0.0": 5}  # by version
EVERY_ROLLBACK = 4


class Rollout:
    """The pointer file, and which version serves under which epoch."""

    def __init__(self, folder: Path) -> None:
        self.pointer = folder / "pointer.toml"
        self.bundles = {
            version: another_bundle(folder / version, version=version, epoch=FIRST_EPOCH, labels=labels)
            for version, labels in LABELS.items()
        }
        self.epochs = {FIRST_EPOCH: "1.0.0"}
        self._former = ""
        point(self.pointer, self.bundles["1.0.0"], FIRST_EPOCH)

    def next(self, number: int) -> int:
        """Points at another bundle; returns the epoch that it is to serve under."""
        serving = self.epochs[epoch := max(self.epochs)]
        fresh = next(version for version in LABELS if version not in {serving, self._former})
        wanted = self._former if number % EVERY_ROLLBACK == 0 else fresh
        self._former = serving
        self.epochs[epoch + 1] = wanted
        point(self.pointer, self.bundles[wanted], epoch + 1)
        return epoch + 1


class Load:
    """Publishes so many listings a second on a thread of its own; `sent` of them until it is stopped."""

    def __init__(self, shop: Shop, per_s: float) -> None:
        self.sent = 0
        self._shop, self._per_s = shop, per_s
        self._stop = threading.Event()
        self._failure: EnricherError | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """At the end all that was sent is on the broker."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        begun_s, listings = time.monotonic(), editions(covers=False)
        try:
            while not self._stop.wait(TICK_S):
                while self.sent < (time.monotonic() - begun_s) * self._per_s:
                    self._shop.publisher.publish(next(listings).values)
                    self.sent += 1
            self._shop.publisher.flush()
        except EnricherError as error:
            self._failure = error


def counts(shop: Shop) -> dict[str, int]:
    """Swaps by outcome."""
    registry = shop.service.metrics.registry
    names = ("taken_over", "rolled_back", "refused")
    return {name: int(registry.get_sample_value("enricher_model_swaps_total", {"outcome": name}) or 0) for name in names}


def swap(shop: Shop, rollout: Rollout, number: int) -> tuple[str, float]:
    """One swap: what became of it, and after how many seconds. `number` is 1 for the first."""
    before = counts(shop)
    rollout.next(number)
    shop.service.reload()
    begun_s = time.monotonic()
    while (now := counts(shop)) == before:
        if time.monotonic() - begun_s > SWAP_S_MAX:
            return "late", SWAP_S_MAX
        time.sleep(TICK_S)
    return next(name for name in now if now[name] > before[name]), time.monotonic() - begun_s


def measure(shop: Shop, rollout: Rollout, swaps: int, *, per_s: float) -> dict[str, Any]:
    """All swaps under load, then what was answered meanwhile."""
    load, became = Load(shop, per_s), []
    with shop.serving(), load.flowing():
        shop.wait(lambda: shop.done() > 0, "a first answer")
        for number in range(1, swaps + 1):
            became.append(swap(shop, rollout, number))
            if became[-1][0] in {"refused", "late"}:
                break  # what serves now is not what the next one reckons with
        shop.wait(lambda: shop.done() >= load.sent, "all answers")
    answers = shop.answers(load.sent)
    outcomes, sources = Counter(outcome for outcome, _ in became), Counter(answer.source for answer in answers)
    events = [shop.event(answer) for answer in answers if not answer.dead]
    failures = {
        "refused": outcomes["refused"],
        "late": outcomes["late"],
        "lost": load.sent - len(sources),
        "doubled": sum(times - 1 for times in sources.values()),
        "dead": sum(answer.dead for answer in answers),
        "mixed": sum(not _of_one_model(event, rollout) for event in events),
    }
    return {
        "swaps": outcomes["taken_over"] + outcomes["rolled_back"],
        "rollbacks": outcomes["rolled_back"],
        "failures": failures,
        "events": load.sent,
        "epochs_that_answered": len({event["model_epoch"] for event in events}),
        "seconds": _spread(became),
    }


def _of_one_model(event: Any, rollout: Rollout) -> bool:
    version = rollout.epochs.get(event["model_epoch"])
    labels = len(event["predictions"]["genre"]["labels"])
    return version == event["model_version"] and labels == LABELS.get(version) and bool(event["engine"])


def _spread(became: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """From the wish to the takeover, which the service looks for once a second."""
    found = {}
    for kind in ("taken_over", "rolled_back"):
        if taken := [seconds for outcome, seconds in became if outcome == kind]:
            found[kind] = dict(zip(("p50", "p99", "max"), map(float, np.percentile(taken, [50, 99, 100])), strict=True))
    return found


def main() -> int:
    """Starts everything, measures, prints; exit code 1 with any failure."""
    parser = shop_parser(__doc__)
    parser.add_argument("--swaps", type=int, required=True)
    parser.add_argument("--per-s", type=float, default=500.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-swaps-") as folder:
        rollout = Rollout(Path(folder))
        with open_shop(model_settings(arguments, pointer=rollout.pointer)) as shop:
            found = measure(shop, rollout, arguments.swaps, per_s=arguments.per_s)
    print(json.dumps(found))
    if any(found["failures"].values()):
        raise SystemExit(f"failures: {found['failures']}")
    return 0


if __name__ == "__main__":
    main()
