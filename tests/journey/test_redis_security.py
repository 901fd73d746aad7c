"""Redis over TLS, with an ACL user who may do no more than the service needs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer.crash_marks import CrashMarks
from consumer.errors import DependencyUnavailable, SettingsError
from consumer.prediction_store import PredictionStore
from consumer.records import Tombstone
from tests.consumer.test_prediction_store import ENCODER, NOW_MS, novel
from tests.infrastructure.kafka_secure import new_certificates
from tests.infrastructure.redis_nodes import SecureRedisServer
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, wait_until
from tests.journey.test_security import consumer

pytestmark = pytest.mark.integration

USER, PASSWORD = "enricher", "hush-hush"
RIGHTS = {
    *("+ping", "+evalsha", "+script|load", "+hget", "+hmget", "+hgetall", "+hset", "+hlen", "+hkeys", "+hdel", "+persist"),
    "+client|setinfo",  # not needed: without it the client's name is refused, and each connection leaves a line in ACL LOG
}
PREFIX = "listing:"
KEYS = f"~{PREFIX}*"


@pytest.fixture
def admin(secure_redis: SecureRedisServer) -> Iterator[Any]:
    """Who makes users; the test's are gone after it."""
    client = secure_redis.client()
    yield client
    client.acl_deluser(USER)
    client.flushall()
    client.close()


def allow(admin: Any, rights: set[str], keys: str = KEYS) -> None:
    admin.acl_deluser(USER)
    admin.flushall()
    admin.script_flush()
    admin.execute_command("ACL SETUSER", USER, "on", f">{PASSWORD}", keys, *sorted(rights))


def url_of(server: SecureRedisServer, *, password: str = PASSWORD) -> str:
    return server.url.replace("rediss://", f"rediss://{USER}:{password}@")


def a_store(server: SecureRedisServer, *, ttl_seconds: int | None = None) -> PredictionStore:
    return PredictionStore(url_of(server), key_prefix=PREFIX, ttl_seconds=ttl_seconds, ca=server.certificates.authority)


def work(server: SecureRedisServer, *, ttl_seconds: int | None = None) -> None:
    """All that the service asks of Redis. Raises: DependencyUnavailable."""
    store = a_store(server, ttl_seconds=ttl_seconds)
    marks = CrashMarks(url_of(server), key_prefix=PREFIX, group_id="g", ca=server.certificates.authority)
    try:
        store.write([novel(version=2)], now_ms=NOW_MS)
        assert store.write([novel(version=1)], now_ms=NOW_MS) == [novel(version=2)]
        assert len(store.unchanged({"bd-1": "c0ffee"}, model_epoch=3, recall=ENCODER.recall)) == 1
        store.write([Tombstone("bd-1", 3)], now_ms=NOW_MS)
        assert store.read(["bd-1"]) == [Tombstone("bd-1", 3)]
        marks.write(("t", 0), "17 0 process")
        assert marks.read(("t", 0)) == "17 0 process"
        marks.write(("t", 0), None)
    finally:
        store.close()
        marks.close()


def test_the_service_and_its_commands_work_over_tls_with_the_least_rights(
    surroundings: Surroundings, secure_redis: SecureRedisServer, admin: Any, tmp_path: Path
) -> None:
    """rediss://, an authority of one's own, a user with the least rights: `doctor` finds all well, the service enriches."""
    allow(admin, RIGHTS, f"~{surroundings.redis_prefix}*")
    authority = tmp_path / "ca.pem"
    authority.write_text(secure_redis.certificates.authority, encoding="ascii")
    surroundings.redis_url = url_of(secure_redis)
    surroundings.overrides["REDIS__CA_FILE"] = str(authority)
    code, report = consumer(surroundings, "doctor")
    assert (code, "redis: answers, and lets its user do what the service does" in report) == (0, True), report
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": "a-1", "version": 1, "title": "The garden"}])

        def stored() -> bool:
            code, said = consumer(surroundings, "get", "a-1")
            assert code == 0, said
            return "predictions" in json.loads(said.splitlines()[0])

        wait_until(stored, "the listing is stored")
        assert service.terminate() == 0
    assert admin.acl_log() == []


@pytest.mark.parametrize("ttl_seconds", [None, 60])
def test_the_rights_that_are_written_down_are_enough(
    secure_redis: SecureRedisServer, admin: Any, ttl_seconds: int | None
) -> None:
    """EXPIRE instead of PERSIST where entries have a time to live."""
    allow(admin, RIGHTS if ttl_seconds is None else RIGHTS - {"+persist"} | {"+expire"})
    a_store(secure_redis, ttl_seconds=ttl_seconds).check()
    work(secure_redis, ttl_seconds=ttl_seconds)


@pytest.mark.parametrize("right", sorted(RIGHTS - {"+client|setinfo"}))
def test_each_right_is_needed_and_named_by_the_check_where_it_is_missing(
    secure_redis: SecureRedisServer, admin: Any, right: str
) -> None:
    """Without it the service's work fails, and the check at its start, which `doctor` shows, names it."""
    allow(admin, RIGHTS - {right})
    with pytest.raises(SettingsError, match=r"least rights are in the README") as found:
        a_store(secure_redis).check()
    assert right.removeprefix("+") in str(found.value).lower()
    if right != "+ping":  # said on connections that were idle for half a minute
        with pytest.raises(DependencyUnavailable, match=r"least rights are in the README"):
            work(secure_redis)


def test_keys_that_are_not_the_users_are_named(secure_redis: SecureRedisServer, admin: Any) -> None:
    """A user of another prefix."""
    allow(admin, RIGHTS, "~other:*")
    with pytest.raises(SettingsError, match=r"HSET.* on listing:\*"):
        a_store(secure_redis).check()


def test_a_wrong_password_and_none_are_wrong_settings_and_are_not_shown(
    surroundings: Surroundings, secure_redis: SecureRedisServer, admin: Any
) -> None:
    """The start ends at once, with exit code 2; so does `doctor`."""
    allow(admin, RIGHTS)
    authority = secure_redis.certificates.authority
    wrong = PredictionStore(url_of(secure_redis, password="letmein"), key_prefix=PREFIX, ttl_seconds=None, ca=authority)
    with pytest.raises(SettingsError, match=r"WRONGPASS .* the password in redis\.url is wrong") as found:
        wrong.check()
    assert "letmein" not in str(found.value)
    admin.execute_command("ACL SETUSER", "default", "resetpass", ">secret")
    try:
        with pytest.raises(SettingsError, match=r"NOAUTH .* asks for a password"):
            PredictionStore(secure_redis.url, key_prefix=PREFIX, ttl_seconds=None, ca=authority).check()
    finally:
        admin.execute_command("ACL SETUSER", "default", "nopass")
    with RunningService(surroundings, REDIS__URL=url_of(secure_redis, password="letmein"), REDIS__CA=authority) as service:
        assert service.wait() == 2
        assert "WRONGPASS" in service.log()
        assert "letmein" not in service.log()


def test_a_server_that_another_authority_signed_is_not_trusted(secure_redis: SecureRedisServer) -> None:
    """Neither with another authority nor with the system's."""
    for ca in (new_certificates("127.0.0.1").authority, None):
        with pytest.raises(SettingsError, match=r"certificate verify failed.*redis\.ca must hold"):
            PredictionStore(secure_redis.url, key_prefix=PREFIX, ttl_seconds=None, ca=ca).check()
