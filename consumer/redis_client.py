"""The one place that opens Redis: one server, or a cluster behind the same four calls.

Every call may block for two times `socket_timeout_s` where packets get lost (a cluster: that for each node that is silent, and
once more to learn which nodes there are) and raises DependencyUnavailable when Redis does not answer or refuses.

After any error no idle connection is kept: behind the same name another server may stand now (a failover), and what still
leads to the old one would go on answering READONLY, or nothing.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumer.errors import SettingsError
from consumer.redis_cluster import Cluster
from consumer.redis_server import Command, OneServer, Script

_CONNECTIONS_MAX = 16
_HEALTH_CHECK_SECONDS = 30
# redis+cluster://user:password@host:port,host:port?options
_CLUSTER_URL: Final = re.compile(r"^(rediss?)\+cluster://(?:([^/?#]*)@)?([^/?#@,]+(?:,[^/?#@,]+)*)/?(\?[^#]*)?$")


class RedisClient(Protocol):
    """Safe to share between threads. Nothing connects before the first call.

    Attributes:
        needs: the commands that it runs beside its caller's.
    """

    needs: ClassVar[tuple[str, ...]]

    def run(self, script: Script, keys: Sequence[str], shared: Sequence[str], of_key: Sequence[Command]) -> list[Any]:
        """The script over all keys, its arguments being `shared` and then those of each key. Safe to do again where it fails.

        On one server it is one call, in a cluster one for each key: then what the script does is atomic for each key only.
        """

    def pipelined(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """The answers to commands that have one key each, in order."""

    def everywhere(self, script: Script, arguments: Sequence[str]) -> list[Any]:
        """The answers of each node that takes writes to a script that has no keys."""

    def close(self) -> None:
        """Closes all connections; a later call would open new ones."""


def open_redis(url: str, *, ca: str | None = None, socket_timeout_s: float = 5.0) -> RedisClient:
    """A client of the server or the cluster that the URL names; connects with its first call.

    Args:
        url: `redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://` or `rediss+cluster://`, of which the last two may
            name several nodes, `host:port,host:port`; never logged.
        ca: PEM; who may have signed the server's certificate, instead of the system's authorities.

    Raises:
        SettingsError: the URL cannot be read.
    """

    def open_one(url: str) -> redis.Redis:
        tls: dict[str, Any] = {"ssl_ca_data": ca} if ca is not None and url.startswith("rediss://") else {}
        return redis.Redis.from_url(
            url,
            socket_timeout=socket_timeout_s,
            socket_connect_timeout=socket_timeout_s,
            health_check_interval=_HEALTH_CHECK_SECONDS,
            max_connections=_CONNECTIONS_MAX,
            # Once more at once, for the connection that a proxy closed while it was idle. Waiting is the caller's.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **tls,
        )

    try:
        if (found := _CLUSTER_URL.match(url)) is None:
            return OneServer(open_one(url))
        scheme, user, hosts, options = found.groups()
        before, after = f"{scheme}://{user}@" if user is not None else f"{scheme}://", options or ""
        return Cluster(hosts.split(","), open_node=lambda address: open_one(f"{before}{address}/0{after}"))
    except (ValueError, TypeError):
        raise SettingsError(  # not the client's words: they may quote a part of the URL
            "redis.url: expected redis://[[user]:password@]host[:port][/database], rediss://…, unix://… or "
            "redis+cluster://[[user]:password@]host[:port][,host[:port]…], found "
            "something else (in a password, / ? # @ and : are written as %2F %3F %23 %40 and %3A)"
        ) from None
