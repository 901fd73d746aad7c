"""Another model takes over between two batches, and nothing that is wrong with it hurts the one that serves."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumer import model_swap
from consumer.errors import SettingsError
from consumer.model_swap import ModelSwap
from consumer.serving import ServedModel, Wanted
from consumer.telemetry import Metrics
from model.bundle import Bundle
from model.features import FeatureSettings
from tests.consumer.journey import a_served_model
from tests.fake_model import FakeBackend
from tests.fakes import eventually


class ClosingBackend(FakeBackend):
    """Knows whether it was freed."""

    closed = False

    def close(self) -> None:
        assert not self.closed, "freed twice"
        self.closed = True


class World:
    """Bundles by name, what the pointer says, and everything that was opened."""

    def __init__(self, bundle: Bundle, *, same_covers: bool = False) -> None:
        self.bundle = bundle
        self.wanted: Wanted | SettingsError = Wanted(Path("a"))
        self.opened: list[ClosingBackend] = []
        self.taken: list[tuple[str, int]] = []
        self.before_open: Callable[[], object] = lambda: None
        self.metrics = Metrics()
        first = self.open_model(self.load(Wanted(Path("a"))), 3)
        self.swap = ModelSwap(
            first,
            wanted=Wanted(Path("a")),
            look=self.look,
            load=self.load,
            open_model=self.open_model,
            on_taken=lambda model: self.taken.append((model.identity.version, model.identity.epoch)),
            metrics=self.metrics,
            same_covers=same_covers,
        )

    def look(self) -> Wanted:
        if isinstance(self.wanted, SettingsError):
            raise self.wanted
        return self.wanted

    def load(self, wanted: Wanted) -> Bundle:
        """`a` has the manifest's epoch 3, `b` 4 …; `broken` is broken."""
        name = wanted.bundle.name
        if name == "broken":
            raise SettingsError("model.bundle: a changed byte")
        features = FeatureSettings(cover_height=16, cover_width=16) if name == "z" else self.bundle.manifest.features
        changes = {"version": name, "epoch": 3 + ord(name) - ord("a"), "features": features}
        return replace(self.bundle, manifest=self.bundle.manifest.model_copy(update=changes))

    def open_model(self, bundle: Bundle, epoch: int) -> ServedModel:
        self.opened.append(ClosingBackend())
        backend = self.opened[-1]
        if len(self.opened) > 1:
            self.before_open()
        return a_served_model(bundle, backend).under(epoch)

    def count(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("enricher_model_swaps_total", {"outcome": outcome})

    def point(self, name: str, epoch: int | None = None) -> "World":
        """Changes the pointer and waits until that was dealt with; what is ready takes over."""
        before = self._dealt_with()
        self.wanted = Wanted(Path(name), epoch)
        eventually(lambda: self._dealt_with() > before)
        return self

    def _dealt_with(self) -> float:
        self.swap.current()
        outcomes = ("taken_over", "rolled_back", "refused", "unchanged")
        return sum(self.count(outcome) or 0 for outcome in outcomes)


@pytest.fixture
def world(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(model_swap, "POLL_S", 0.002)
    one = World(tiny_bundle)
    with one.swap:
        yield one
    assert all(backend.closed for backend in one.opened), "all models are freed at the end"


def serving(world: World) -> tuple[str, int]:
    identity = world.swap.current().identity
    return identity.version, identity.epoch


def test_a_changed_pointer_brings_another_model(world: World) -> None:
    """The new model serves under its manifest's epoch; the former is kept, and freed when the next one has taken over."""
    world.point("b")
    assert (serving(world), world.taken, world.count("taken_over")) == (("b", 4), [("b", 4)], 1)
    assert [one.closed for one in world.opened] == [False, False]
    world.point("c")
    assert serving(world) == ("c", 5)
    eventually(lambda: [one.closed for one in world.opened] == [True, False, False])


def test_nothing_takes_over_before_the_batch_that_asks(world: World) -> None:
    """A model that is ready waits; the one that serves changes only where the pipeline asks for the next batch's."""
    before = world.swap.current()
    with capture_logs() as logs:
        world.wanted = Wanted(Path("b"))
        eventually(lambda: any(one["event"] == "model_swap_ready" for one in logs))
    assert (world.taken, world.count("taken_over")) == ([], 0)
    assert world.swap.current() is not before


def test_a_rollback_opens_nothing(world: World) -> None:
    """The former model comes back at once, under the higher epoch that the pointer says, and forth again."""
    world.point("b").point("a", 10)
    assert (serving(world), world.count("rolled_back"), len(world.opened)) == (("a", 10), 1, 2)
    world.point("b", 11)
    assert (serving(world), world.count("rolled_back"), len(world.opened)) == (("b", 11), 2, 2)
    assert not any(one.closed for one in world.opened)


@pytest.mark.parametrize("epoch", [None, 3, 4])
def test_an_epoch_that_does_not_rise_is_refused(world: World, epoch: int | None) -> None:
    """The store would refuse such a model's answers; the message says what to do, and the old one goes on."""
    world.point("b")
    with capture_logs() as logs:
        world.point("a", epoch)
    [refusal] = [one for one in logs if one["event"] == "model_swap_refused"]
    assert "expected an epoch above 4, which tiny@b serves under" in refusal["reason"]
    assert "say a higher one as `epoch`" in refusal["reason"]
    assert (serving(world), world.count("refused"), len(world.opened)) == (("b", 4), 1, 2)


def test_the_same_bundle_under_a_higher_epoch_is_opened_anew(world: World) -> None:
    """So a new engine of the same bundle takes over."""
    world.point("a", 9)
    assert (serving(world), world.count("taken_over"), len(world.opened)) == (("a", 9), 1, 2)


def test_the_same_again_changes_nothing(world: World) -> None:
    """A signal without a change is said and counted, and opens nothing."""
    world.swap.ask()
    eventually(lambda: world.count("unchanged") == 1)
    assert (serving(world), len(world.opened)) == (("a", 3), 1)


def test_a_signal_finds_a_bundle_that_was_replaced_in_place(world: World) -> None:
    """Where the path stays and the manifest changed, SIGHUP brings the new one."""
    truthful = world.load
    world.swap._load = lambda wanted: truthful(Wanted(Path("b")))
    world.swap.ask()
    eventually(lambda: serving(world) == ("b", 4))


def test_a_broken_bundle_is_refused_and_said_once(world: World) -> None:
    """The model that serves goes on; a later sound one takes over."""
    with capture_logs() as logs:
        world.point("broken")
        threading.Event().wait(0.05)
    refusals = [(one["error"], one["reason"], one["serving"]) for one in logs if one["event"] == "model_swap_refused"]
    assert refusals == [("SettingsError", "model.bundle: a changed byte", "tiny@a")]
    assert serving(world) == ("a", 3)
    assert serving(world.point("b")) == ("b", 4)


def test_a_pointer_that_went_away_is_refused_and_said_once(world: World) -> None:
    """Neither a missing nor a half-written file stops the service or the watch."""
    world.wanted = SettingsError("model.pointer: no such file")
    eventually(lambda: world.count("refused") == 1)
    threading.Event().wait(0.05)
    assert (serving(world), world.count("refused")) == (("a", 3), 1)
    assert serving(world.point("b")) == ("b", 4)


def test_whatever_a_backend_raises_costs_the_new_model_only(world: World) -> None:
    """An exception that no one foresaw is a refusal, too."""

    def surprise() -> None:
        world.opened.pop()
        raise ZeroDivisionError("a driver's")

    world.before_open = surprise
    world.point("b")
    world.before_open = lambda: None
    assert (serving(world), world.count("refused")) == (("a", 3), 1)
    assert serving(world.point("c")) == ("c", 5)


def test_the_last_of_two_changes_wins(world: World) -> None:
    """What is no longer wanted when it is loaded never serves, and is freed."""

    def meanwhile() -> None:
        world.wanted = Wanted(Path("c"))
        world.before_open = lambda: None

    world.before_open = meanwhile
    world.point("b")
    assert (serving(world), world.taken, world.count("superseded")) == (("c", 5), [("c", 5)], 1)
    eventually(lambda: [one.closed for one in world.opened] == [False, True, False])


def test_what_never_took_over_is_replaced(world: World) -> None:
    """A pipeline that waits for Redis asks for no model; the later of two that are ready takes over, the other is freed."""
    with capture_logs() as logs:
        for number, name in enumerate(("b", "c"), 1):
            world.wanted = Wanted(Path(name))
            eventually(lambda number=number: sum(one["event"] == "model_swap_ready" for one in logs) == number)
    assert serving(world) == ("c", 5)
    eventually(lambda: [one.closed for one in world.opened] == [False, True, False])


def test_a_rollback_that_never_took_over_does_not_free_the_former(world: World) -> None:
    """Replaced by a second one, the first leaves the former loaded."""
    world.point("b")
    with capture_logs() as logs:
        for number, epoch in enumerate((10, 11), 1):
            world.wanted = Wanted(Path("a"), epoch)
            eventually(lambda number=number: sum(one["event"] == "model_swap_ready" for one in logs) == number)
    assert (serving(world), world.count("rolled_back")) == (("a", 11), 1)
    assert not any(one.closed for one in world.opened)


@pytest.mark.parametrize("same_covers", [True, False])
def test_another_size_of_covers_needs_a_restart_where_covers_are_fetched(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, same_covers: bool
) -> None:
    """Covers that are kept were decoded for the model that serves; without them the new size is welcome."""
    monkeypatch.setattr(model_swap, "POLL_S", 0.002)
    world = World(tiny_bundle, same_covers=same_covers)
    with world.swap, capture_logs() as logs:
        world.point("z")
        assert serving(world)[0] == ("a" if same_covers else "z")
    refusal = (
        f"{tiny_bundle.path}: expected covers of (1, 8, 8), as those that were fetched, found (1, 16, 16); a restart takes it"
    )
    assert [one["reason"] for one in logs if one["event"] == "model_swap_refused"] == [refusal] * same_covers
