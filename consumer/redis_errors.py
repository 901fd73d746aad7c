"""What Redis's answers mean for whoever runs the service: a reason that says what to do, and whether waiting can help.

While the service runs every error is waited for: a failover ends, an operator mends a right or a password. At its start the
mistakes below end it instead (`PredictionStore.check`): they would not go away by themselves.
"""

from typing import Final

import redis

from consumer.errors import DependencyUnavailable

RIGHTS: Final = "the least rights are in the README, “Redis: TLS, users and clusters”"

# Code of the answer, or what its text contains: what to do. A source of the codes: redis/src/server.c, `createSharedObjects`.
_PASSING: Final = {
    "LOADING": "it reads its data from disk and will answer after that",
    "BUSY": "a script runs for longer than busy-reply-threshold; SCRIPT KILL ends one that has not written yet",
    "READONLY": "this is a replica: a failover is under way, or redis.url names a replica",
    "OOM": "it is full: raise maxmemory, or set redis.ttl_seconds",
    "MASTERDOWN": "this is a replica that lost its primary: a failover is under way, or redis.url names a replica",
    "NOREPLICAS": "fewer replicas than min-replicas-to-write follow it",
    "MISCONF": "it cannot save to its disk: look there",
    "CLUSTERDOWN": "the cluster does not serve all slots: a failover is under way, or nodes are gone (CLUSTER NODES)",
    "TRYAGAIN": "a slot is on its way to another node",
    "max number of clients reached": "raise its maxclients",
}
_MISTAKES: Final = {
    "NOAUTH": "it asks for a password: redis.url is redis://[user]:password@host, or comes from CONSUMER_REDIS__URL_FILE",
    "WRONGPASS": "the user or the password in redis.url is wrong",
    "NOPERM": f"the user of redis.url lacks a right; {RIGHTS}",
    "ACL failure in script": f"the user of redis.url lacks a right; {RIGHTS}",
    "can't run this command": f"the user of redis.url lacks a right; {RIGHTS}",
    "MOVED": "it is a node of a cluster: redis.url must begin with redis+cluster:// or rediss+cluster://",
    "CROSSSLOT": "it is a node of a cluster: redis.url must begin with redis+cluster:// or rediss+cluster://",
    "SELECT is not allowed in cluster mode": "a cluster has no databases: leave the number out of redis.url",
    "cluster support disabled": "it is no cluster: redis.url must begin with redis:// or rediss://",
    "DB index is out of range": "redis.url names a database that it does not have",
    "certificate verify failed": "redis.ca must hold the certificates of the authority that signed the server's",
}


class Misconfigured(DependencyUnavailable):
    """Redis refuses for a reason that stays until somebody changes a setting, here or there."""


def unavailable(error: redis.RedisError) -> DependencyUnavailable:
    """The error in the service's words: Redis's own, and what to do."""
    text = str(error) or type(error).__name__
    # What the client knows as a code it takes off the text; of other codes the text still begins with it.
    code = getattr(error, "status_code", None) or text.split(" ", 1)[0]
    said = text if code == "ERR" or text.startswith(code) else f"{code} {text}"
    for table, kind in ((_MISTAKES, Misconfigured), (_PASSING, DependencyUnavailable)):
        advice = table.get(code) or next((advice for part, advice in table.items() if part in text), None)
        if advice is not None:
            return kind("redis", f"{said.rstrip('.')}: {advice}")
    return DependencyUnavailable("redis", said)
