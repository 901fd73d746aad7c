"""What Redis says, and what the service makes of it."""

import pytest
from redis import ConnectionError as Refused
from redis._parsers.base import BaseParser

from consumer.redis_errors import Misconfigured, unavailable

PASSING = {
    "LOADING Redis is loading the dataset in memory": "will answer after that",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "SCRIPT KILL ends one",
    "READONLY You can't write against a read only replica.": "a failover is under way",
    "OOM command not allowed when used memory > 'maxmemory'.": "raise maxmemory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "lost its primary",
    "NOREPLICAS Not enough good replicas to write.": "min-replicas-to-write",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": "cannot save",
    "CLUSTERDOWN The cluster is down": "does not serve all slots",
    "TRYAGAIN Multiple keys request during rehashing of slot": "on its way to another node",
    "ERR max number of clients reached": "raise its maxclients",
}
MISTAKES = {
    "NOAUTH Authentication required.": "asks for a password",
    "WRONGPASS invalid username-password pair or user is disabled.": "the password in redis.url is wrong",
    "NOPERM User u has no permissions to run the 'evalsha' command": "lacks a right",
    "ERR ACL failure in script: User u has no permissions to run the 'hset' command": "lacks a right",
    "ERR The user executing the script can't run this command or subcommand": "lacks a right",
    "MOVED 866 127.0.0.1:7001": "redis+cluster://",
    "CROSSSLOT Keys in request don't hash to the same slot": "redis+cluster://",
    "ERR SELECT is not allowed in cluster mode": "leave the number out",
    "ERR This instance has cluster support disabled": "must begin with redis://",
    "ERR DB index is out of range": "a database that it does not have",
}


@pytest.mark.parametrize("line", [*PASSING, *MISTAKES])
def test_an_answer_of_redis_says_what_to_do(line: str) -> None:
    """The reason holds the answer's code and text, and what to do; only what no waiting changes is a mistake."""
    found = unavailable(BaseParser.parse_error(line))
    advice = {**PASSING, **MISTAKES}[line]
    assert advice in found.reason
    assert isinstance(found, Misconfigured) == (line in MISTAKES)
    assert line.split(" ")[0] == "ERR" or line.split(" ")[0] in found.reason


def test_a_certificate_that_is_not_trusted_says_what_to_do() -> None:
    """OpenSSL's words for it."""
    found = unavailable(Refused("Error 1 connecting to store:6379. [SSL: …] certificate verify failed: self-signed certificate"))
    assert isinstance(found, Misconfigured)
    assert "redis.ca must hold" in found.reason


def test_what_nobody_knows_is_passed_on_as_it_is() -> None:
    """An unknown answer is waited for, in Redis's own words."""
    found = unavailable(BaseParser.parse_error("WRONGTYPE Operation against a key holding the wrong kind of value"))
    assert not isinstance(found, Misconfigured)
    assert found.reason == "WRONGTYPE Operation against a key holding the wrong kind of value"
