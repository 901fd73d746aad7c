"""The commands, typed as a user types them, against real servers."""

import json
import os
import subprocess
import sys

import pytest

from tests.journey.publishing import send_raw
from tests.journey.running import ROOT, RunningService, Surroundings, decode_enriched, wait_for_answers

pytestmark = pytest.mark.integration


def consumer(surroundings: Surroundings, *words: str, stdin: str = "") -> tuple[int, str]:
    """Runs a command; exit code and standard output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    finished = subprocess.run(
        [sys.executable, "-m", "consumer", *words],
        input=stdin.encode(),
        capture_output=True,
        cwd=ROOT,
        env={**kept, **surroundings.environment()},
        timeout=120,
        check=False,
    )
    return finished.returncode, finished.stdout.decode()


def test_publish_with_covers_then_get_what_predict_says(surroundings: Surroundings) -> None:
    """Listings that ship, covers and all, go through the service; `get` prints what `predict` prints for the same lines."""
    with (ROOT / "consumer/demo/listings.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [{**row, "version": 3} for row in rows if row.get("cover")][:40]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    covers = ("--covers", str(ROOT / "consumer/demo/covers.zip"))

    code, said = consumer(surroundings, "publish", *covers, "-", stdin=text)
    assert (code, said) == (0, f"40 events sent to {surroundings.topics.input}\n")
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, 40)
    assert (len(enriched), dead) == (40, [])

    code, stored = consumer(surroundings, "get", *(row["listing_id"] for row in rows))
    assert code == 0
    code, predicted = consumer(surroundings, "predict", *covers, "-", stdin=text)
    assert code == 0
    for one, other in zip(map(json.loads, stored.splitlines()), map(json.loads, predicted.splitlines()), strict=True):
        assert (one["listing_id"], one["version"], one["model"]) == (other["listing_id"], 3, other["model"])
        best, same = (document["predictions"]["department"]["labels"][0] for document in (one, other))
        assert best["confidence"] == pytest.approx(same["confidence"], abs=2e-4)


def test_the_cover_counts(surroundings: Surroundings) -> None:
    """The same listing with and without its cover is not answered alike: the image reaches the model."""
    row = {"listing_id": "a-1", "version": 1, "title": "An Island Tale"}
    consumer(surroundings, "publish", "-", stdin=json.dumps(row))
    covered = json.dumps({**row, "version": 2, "cover": first_cover()})
    consumer(surroundings, "publish", "--covers", str(ROOT / "consumer/demo/covers.zip"), "-", stdin=covered)
    with RunningService(surroundings, BATCH__MAX_RECORDS="1") as service:
        service.wait_ready()
        enriched, _ = wait_for_answers(surroundings, 2)
    plain, with_cover = decode_enriched(surroundings, enriched)
    assert plain is not None
    assert with_cover is not None
    assert (plain["outcome"], with_cover["outcome"]) == ("PREDICTED", "PREDICTED")
    assert plain["predictions"] != with_cover["predictions"]


def first_cover() -> str:
    """A name in the zip that ships."""
    with (ROOT / "consumer/demo/listings.jsonl").open(encoding="utf-8") as lines:
        return next(str(row["cover"]) for row in map(json.loads, lines) if row.get("cover"))


def test_dead_letters_are_listed_shown_and_replayed(surroundings: Surroundings) -> None:
    """list says where and why, show gives the bytes, replay puts them back and counts the attempts."""
    send_raw(surroundings, b"k-1", b"rubbish")
    with RunningService(surroundings) as service:
        service.wait_ready()
        wait_for_answers(surroundings, 1)
        code, listed = consumer(surroundings, "dead-letters", "list", "--stage", "decode")
        assert code == 0
        letter = json.loads(listed)
        assert (letter["key"], letter["stage"], letter["attempts"]) == ("k-1", "decode", 1)
        code, shown = consumer(surroundings, "dead-letters", "show", letter["position"])
        assert (code, json.loads(shown)["value_hex"]) == (0, b"rubbish".hex())
        assert consumer(surroundings, "dead-letters", "show", "3/99")[0] == 2
        assert consumer(surroundings, "dead-letters", "list", "--stage", "cover") == (0, "")
        code, said = consumer(surroundings, "dead-letters", "replay", "--reason", "not avro")
        assert (code, said) == (0, f"1 records put back on {surroundings.topics.input}\n")
        _, dead = wait_for_answers(surroundings, 2)
    assert sorted(one.header("dlq.attempts") or "" for one in dead) == ["1", "2"]


def test_doctor_finds_everything_well(surroundings: Surroundings) -> None:
    """With all servers there, every line is ok and the exit code 0; with a missing topic it is 3 and the line names it."""
    code, report = consumer(surroundings, "doctor")
    assert code == 0, report
    assert all(line.startswith("ok ") for line in report.splitlines())
    surroundings.overrides["KAFKA__DEAD_LETTER_TOPIC"] = "no-such-topic"
    code, report = consumer(surroundings, "doctor")
    assert code == 3
    assert "FAIL kafka.dead_letter_topic: expected the topic no-such-topic, it is not there" in report
