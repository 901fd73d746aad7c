"""A store that lost its data is filled again from the enriched topic."""

import pytest
import redis

from tests.faults.conftest import rounds
from tests.faults.history import answered, prove
from tests.faults.load import Load
from tests.faults.replicas import Replica
from tests.infrastructure.servers import RedisServer
from tests.journey.running import Surroundings, wait_until
from tests.journey.test_rebuild import rebuild

pytestmark = pytest.mark.integration


def test_a_redis_that_restarts_empty_is_filled_again_beside_the_running_service(
    surroundings: Surroundings, redis_server: RedisServer, seed: int
) -> None:
    """Redis is killed and comes back without its data while changes flow; `rebuild` restores them; the checker is content.

    Without late updates: between the loss and the rebuild nothing guards against them.
    """
    with Load(surroundings, seed=seed, late=False) as load, Replica(surroundings) as service:
        service.wait_assigned()
        for _ in range(rounds(1)):
            before = answered(surroundings)
            wait_until(lambda before=before: answered(surroundings) > before + 200, "listings are enriched")
            redis.Redis.from_url(surroundings.redis_url).flushall()
            redis_server.kill()
            redis_server.start()
            assert "listings written" in rebuild(surroundings)
        prove(surroundings, load, "redis restarted empty")
        assert service.terminate() == 0
