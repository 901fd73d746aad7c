"""What a store lost is restored from the enriched topic, beside the running service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from confluent_kafka import Producer

from consumer.records import Enriched, Tombstone
from tests.journey.publishing import delete, publish
from tests.journey.running import ROOT, RunningService, Surroundings, wait_for_answers

pytestmark = pytest.mark.integration


@pytest.fixture
def running(surroundings: Surroundings) -> Iterator[RunningService]:
    """One replica."""
    with RunningService(surroundings) as service:
        yield service.wait_ready()


def rebuild(surroundings: Surroundings, *, code: int = 0, **overrides: str) -> str:
    """What `consumer rebuild` says at its end."""
    environment = {**os.environ, **surroundings.environment(**overrides)}
    command = [sys.executable, "-m", "consumer", "rebuild"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr
    print(f"\n{result.stdout.strip()}")
    return result.stdout


def forget(surroundings: Surroundings) -> redis.Redis:
    """Deletes every entry of this test."""
    client = redis.Redis.from_url(surroundings.redis_url, decode_responses=True)
    if keys := list(client.scan_iter(match=f"{surroundings.redis_prefix}*")):
        client.delete(*keys)
    return client


def test_rebuild_restores_all_states_and_leaves_newer_ones_alone(surroundings: Surroundings, running: RunningService) -> None:
    """An update, a deletion and a comeback are restored; what the store holds at the same version or above is kept."""
    publish(surroundings, [{"listing_id": f"a-{number}", "version": 5, "title": "The garden"} for number in range(5)])
    delete(surroundings, "a-1", version=7)
    delete(surroundings, "a-2", version=7)
    publish(surroundings, [{"listing_id": "a-2", "version": 8, "title": "The garden, again"}])
    wait_for_answers(surroundings, 8)
    ids = [f"a-{number}" for number in range(5)]
    whole = surroundings.stored(ids)
    assert running.terminate() == 0
    client = forget(surroundings)
    kept = {"_version": "6", "_deleted": "1"}
    client.hset(f"{surroundings.redis_prefix}{{a-3}}", mapping=kept)
    output = rebuild(surroundings)
    assert output == "8 records read: 4 listings written, 1 kept as they were\n"
    expected = {**whole, "a-3": Tombstone("a-3", 6)}
    assert _without_content(surroundings.stored(ids)) == _without_content(expected)
    assert rebuild(surroundings) == "8 records read: 1 listings written, 4 kept as they were\n"  # the tombstone, the same again
    client.close()


def test_rebuild_gives_a_deletion_without_a_version_the_highest_one_before_it(surroundings: Surroundings) -> None:
    """A null value whose header says no version: a lower bound guards; where there is none, nothing is written."""
    shop = Producer({"bootstrap.servers": surroundings.bootstrap_servers})
    topic = surroundings.topics.output
    shop.produce(topic, key=b"gone", value=None, headers=[("version", b"9")], partition=0)
    shop.produce(topic, key=b"gone", value=None, headers=[("version", b"no number")], partition=0)
    shop.produce(topic, key=b"never-known", value=None, partition=0)
    assert shop.flush(10) == 0
    output = rebuild(surroundings)
    assert output == "3 records read: 1 listings written, 0 kept as they were, 1 deletions of unknown version left out\n"
    assert surroundings.stored(["gone", "never-known"]) == {"gone": Tombstone("gone", 9), "never-known": None}


def test_rebuild_brings_a_deletion_back_at_the_version_that_the_answer_states(
    surroundings: Surroundings, running: RunningService
) -> None:
    """A late deletion below a tombstone is answered with the tombstone's version, which only `enriched.version` says."""
    delete(surroundings, "a-1", version=9)
    delete(surroundings, "a-1", version=4)
    wait_for_answers(surroundings, 2)
    assert running.terminate() == 0
    forget(surroundings).close()
    shop = Producer({"bootstrap.servers": surroundings.bootstrap_servers})
    older = [("version", b"99"), ("enriched.version", b"3")]  # ranks below, whatever its deletion said
    for partition in range(4):
        shop.produce(surroundings.topics.output, key=b"a-1", value=None, headers=older, partition=partition)
    assert shop.flush(10) == 0
    rebuild(surroundings)
    assert surroundings.stored(["a-1"]) == {"a-1": Tombstone("a-1", 9)}


def test_rebuild_of_a_topic_that_is_not_there_ends_with_code_3(surroundings: Surroundings) -> None:
    """A missing dependency is said, and nothing is written."""
    assert rebuild(surroundings, code=3, KAFKA__OUTPUT_TOPIC="not-there") == ""


def _without_content(states: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (state.version, state.model, state.model_epoch, state.predictions) if isinstance(state, Enriched) else state
        for key, state in states.items()
    }
