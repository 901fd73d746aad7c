"""A store that lost its data is filled again from the enriched topic."""

import re
from dataclasses import replace
from typing import Any

import pytest
import redis

from consumer.records import Enriched, State
from tests.faults.conftest import rounds
from tests.faults.history import answered, prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.infrastructure.servers import RedisServer
from tests.journey.publishing import delete, publish
from tests.journey.running import Surroundings, wait_until
from tests.journey.test_rebuild import rebuild

pytestmark = pytest.mark.integration

QUIET = 40


def test_a_redis_that_restarts_empty_is_filled_again_beside_the_running_service(
    surroundings: Surroundings, redis_server: RedisServer, seed: int
) -> None:
    """Redis is killed and comes back without its data while changes flow; `rebuild` restores them; the checker is content.

    Some listings do not change any more: only `rebuild` can bring those back. Without late updates: between the loss and the
    rebuild nothing guards against them.
    """
    quiet = [f"quiet-{number}" for number in range(QUIET)]
    with Load(surroundings, seed=seed, late=False) as load, Replica(surroundings) as service:
        service.wait_assigned()
        publish(surroundings, [{"listing_id": one, "version": 3, "title": f"A garden, part {one}"} for one in quiet])
        for listing_id in quiet[::4]:
            delete(surroundings, listing_id, version=4)
        load.sent += QUIET + len(quiet[::4])
        for _ in range(rounds(1)):
            before = answered(surroundings)
            wait_until(lambda before=before: answered(surroundings) > before + 200, "listings are enriched")
            whole = states(surroundings, quiet)
            assert None not in whole
            store: redis.Redis[Any] = redis.Redis.from_url(surroundings.redis_url)
            store.config_set("appendfsync", "always")  # a busy disk would keep the loss itself from the file for seconds
            store.flushall()
            redis_server.kill()
            redis_server.start()
            assert states(surroundings, quiet) == [None] * QUIET, "nothing was lost: nothing is tested"
            written = re.search(r"(\d+) listings written", rebuild(surroundings))
            assert written is not None
            assert int(written[1]) >= QUIET
            assert states(surroundings, quiet) == whole
        prove(surroundings, load, "redis restarted empty")
        assert service.terminate() == 0


def states(surroundings: Surroundings, listing_ids: list[str]) -> list[State | None]:
    """What is stored, but for the hash of what the model saw, which the topic does not hold."""
    held = surroundings.stored(listing_ids).values()
    return [replace(state, content="") if isinstance(state, Enriched) else state for state in held]
