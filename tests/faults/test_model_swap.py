"""Models take over and are rolled back under load: no batch is mixed, nothing is lost, and no older model ever wins."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.faults.bundles import another_bundle, point
from tests.faults.checker import History, decode
from tests.faults.conftest import rounds
from tests.faults.history import prove
from tests.faults.load import Load, pause_between
from tests.faults.replicas import Replica
from tests.faults.watcher import Watcher
from tests.journey.running import Surroundings, wait_until

pytestmark = pytest.mark.integration

EPOCH = 100
LABELS = {1: 2, 2: 4}  # how many labels each of the two models gives


class ReadyProbe:
    """Asks /readyz all the time. Use as a context manager; then read `answers`."""

    def __init__(self, replica: Replica) -> None:
        self.answers: list[int] = []
        self._replica = replica
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def __enter__(self) -> "ReadyProbe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self.answers.append(self._replica.get("/readyz")[0])


class Rollout:
    """Two bundles, the pointer, and the epochs under which each of them was served."""

    def __init__(self, folder: Path) -> None:
        self.bundles = {
            number: another_bundle(folder / f"books-{number}", version=f"{number}.0.0", epoch=EPOCH + number - 1, labels=labels)
            for number, labels in LABELS.items()
        }
        self.pointer = folder / "pointer.toml"
        self.served = {EPOCH: 1}  # epoch to the bundle's number
        point(self.pointer, self.bundles[1])

    def swap(self, replica: Replica) -> None:
        """The other bundle under the next epoch; returns when it took over."""
        epoch, number = max(self.served) + 1, 3 - self.served[max(self.served)]
        self.served[epoch] = number
        point(self.pointer, self.bundles[number], epoch)
        self.wait(replica, epoch)

    def wait(self, replica: Replica, epoch: int) -> None:
        replica.wait_logged(f'"epoch": {epoch}, "former"')


@pytest.mark.short_form
def test_models_that_swap_under_load_lose_and_mix_nothing(
    surroundings: Surroundings, load: Load, watcher: Watcher, seed: int, tmp_path: Path
) -> None:
    """A new model, then rollbacks to and fro under load; the service is ready all the while, and each answer names its maker.

    In between a broken bundle, an epoch that does not rise, a file that is no pointer and a signal without a change are refused,
    and the model that serves goes on. A replica that starts afterwards serves what the pointer says.
    """
    swaps, chance, rollout = rounds(20, per_round=5), random.Random(seed), Rollout(tmp_path)
    with Replica(surroundings, MODEL__POINTER=str(rollout.pointer)) as replica:
        replica.wait_ready()
        with ReadyProbe(replica) as probe:
            for number in range(swaps):
                rollout.swap(replica)
                if number == swaps // 2:
                    refuse(replica, rollout)
                pause_between(chance, 0.0, 0.5)
            history = prove(surroundings, load, f"{swaps} swaps, seed {seed}")
        assert swap_counts(replica) == {"taken_over": 1, "rolled_back": swaps - 1, "refused": 3, "unchanged": 2, "superseded": 0}
        assert set(probe.answers) == {200}
        assert f'epoch="{EPOCH + swaps}"' in replica.get("/metrics")[1]
        assert replica.terminate() == 0
    prove_makers(history, rollout)
    with Replica(surroundings, MODEL__POINTER=str(rollout.pointer)) as successor:
        successor.wait_logged(f'"epoch": {EPOCH + swaps}')
        assert successor.wait_assigned().terminate() == 0


def refuse(replica: Replica, rollout: Rollout) -> None:
    """What must not take over does not, and is said."""
    before, epoch = replica.log().count("model_swap_refused"), max(rollout.served)
    right = rollout.pointer.read_text(encoding="utf-8")
    broken = rollout.pointer.parent / "broken"
    another_bundle(broken, version="9.0.0", epoch=999, labels=1)
    with (broken / "model.onnx").open("r+b") as graph:
        graph.seek(5_000_000)
        graph.write(b"a flipped bit")
    for count, change in enumerate(
        (
            lambda: point(rollout.pointer, broken),
            lambda: point(rollout.pointer, rollout.bundles[3 - rollout.served[epoch]], epoch),
            lambda: rollout.pointer.write_text("bundle = "),
        ),
        before + 1,
    ):
        change()
        wait_until(lambda count=count: replica.log().count("model_swap_refused") == count, f"{count} refusals")
    rollout.pointer.write_text(right, encoding="utf-8")
    wait_until(lambda: swap_counts(replica)["unchanged"] == 1, "the pointer is right again")
    os.kill(replica.pid, signal.SIGHUP)
    wait_until(lambda: swap_counts(replica)["unchanged"] == 2, "the signal changed nothing")


@pytest.mark.short_form
def test_a_signal_brings_a_bundle_that_was_replaced_in_place(
    surroundings: Surroundings, load: Load, watcher: Watcher, tmp_path: Path
) -> None:
    """Without a pointer SIGHUP looks at `model.bundle` again, whose folder holds another bundle by now."""
    rollout = Rollout(tmp_path)
    place = tmp_path / "books"
    rollout.bundles[1].rename(place)
    with Replica(surroundings, MODEL__BUNDLE=str(place)) as replica:
        replica.wait_ready()
        place.rename(tmp_path / "former")
        rollout.bundles[2].rename(place)
        os.kill(replica.pid, signal.SIGHUP)
        rollout.wait(replica, EPOCH + 1)
        rollout.served[EPOCH + 1] = 2
        pause_between(random.Random(0), 1.0, 1.0)
        history = prove(surroundings, load, "1 swap by SIGHUP")
        assert replica.terminate() == 0
    prove_makers(history, rollout)


def swap_counts(replica: Replica) -> dict[str, int]:
    lines = replica.get("/metrics")[1].splitlines()
    start = 'enricher_model_swaps_total{outcome="'
    found = [line.removeprefix(start).split('"} ') for line in lines if line.startswith(start)]
    return {outcome: int(float(count)) for outcome, count in found}


def prove_makers(history: History, rollout: Rollout) -> None:
    """Each answer was made by the model that it names, under an epoch of its own; a listing's epochs never go down."""
    highest: dict[bytes | None, int] = {}
    makers: set[int] = set()
    for record in sorted(history.enriched, key=lambda one: (one.partition, one.offset)):
        if record.value is None:
            continue
        event = decode(record.value, history.schemas)
        epoch, number = event["model_epoch"], rollout.served[event["model_epoch"]]
        assert event["model_version"] == f"{number}.0.0"
        assert len(event["predictions"]["genre"]["labels"]) == LABELS[number]
        if event["outcome"] != "SUPERSEDED":  # that one repeats what an earlier batch has stored
            assert epoch >= highest.get(record.key, 0), f"{record.key!r} went back from epoch {highest[record.key]} to {epoch}"
            highest[record.key] = epoch
            makers.add(number)
    assert makers == {1, 2}
