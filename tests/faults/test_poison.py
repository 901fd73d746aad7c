"""A listing that kills the process: the service is restarted, as Kubernetes would, until the killer is a dead letter."""

import signal
import time
from typing import Any

import pytest

from tests.examples import a_jpeg_cover
from tests.faults.mutant import DEADLY
from tests.faults.replicas import Replica
from tests.journey.publishing import publish
from tests.journey.running import Read, Surroundings, read_topic, wait_for_answers

pytestmark = pytest.mark.integration
RESTARTS_MAX = 6


def a_listing(number: int, *, cover: bytes | None = None) -> dict[str, Any]:
    return {"listing_id": f"p-{number}", "version": 1, "title": f"Volume {number}", "cover": cover}


def run_until(surroundings: Surroundings, answers: int) -> list[int]:
    """Restarts the service whenever it dies, until so many answers stand; the exit codes of those that died."""
    deaths: list[int] = []
    while len(deaths) < RESTARTS_MAX:
        with Replica(surroundings, mutation="deadly_covers") as replica:
            end_s = time.monotonic() + 60
            while replica.is_running() and _answers(surroundings) < answers:
                assert time.monotonic() < end_s, replica.log()[-3000:]
                time.sleep(0.2)
            if replica.is_running():
                assert replica.terminate() == 0
                return deaths
            deaths.append(replica.wait())
    raise AssertionError(f"it died {deaths}")


def _answers(surroundings: Surroundings) -> int:
    servers, topics = surroundings.bootstrap_servers, surroundings.topics
    return len(read_topic(servers, topics.output)) + len(read_topic(servers, topics.dead_letter))


def dead_letters(surroundings: Surroundings, answers: int) -> list[tuple[str, str, str]]:
    """Key, stage and reason of each; every input has exactly one answer."""
    enriched, dead = wait_for_answers(surroundings, answers)
    keys = [record.key for record in (*enriched, *dead)]
    assert sorted(keys, key=str) == sorted((f"p-{n}".encode() for n in range(answers)), key=str)
    return [(_text(one.key), _header(one, "dlq.stage"), _header(one, "dlq.reason")) for one in dead]


def _header(record: Read, name: str) -> str:
    return _text(dict(record.headers)[name])


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def test_a_cover_that_segfaults_the_decoder_costs_two_crashes_and_its_own_listing(surroundings: Surroundings) -> None:
    """Two processes die; then it stands in the dead letters, and everything else is enriched exactly once. So does the next."""
    deadly = a_jpeg_cover() + DEADLY
    publish(surroundings, [a_listing(n, cover=deadly if n == 17 else a_jpeg_cover()) for n in range(60)])
    assert run_until(surroundings, 60) == [-signal.SIGSEGV] * 2
    first = ("p-17", "cover", "it ends the process that takes it: signal SIGSEGV")
    assert dead_letters(surroundings, 60) == [first]

    publish(surroundings, [a_listing(n, cover=deadly if n == 85 else None) for n in range(60, 120)])
    assert len(run_until(surroundings, 120)) <= 2
    assert sorted(dead_letters(surroundings, 120)) == [first, ("p-85", *first[1:])]


def test_kills_at_random_make_no_dead_letters(surroundings: Surroundings) -> None:
    """SIGKILL at the same place, twice: the third process tries what stands there, finds nobody guilty and enriches all."""
    publish(surroundings, [a_listing(n, cover=a_jpeg_cover()) for n in range(40)])
    for _ in range(2):
        with Replica(surroundings, failpoint="before_store:kill:1") as killed:
            assert killed.wait() == -signal.SIGKILL
    with Replica(surroundings) as last:
        last.wait_logged("processes_died_here")
        assert dead_letters(surroundings, 40) == []
        assert last.terminate() == 0
