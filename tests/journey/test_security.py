"""TLS and passwords work and are never shown; a dead letter that is too large for its topic does not stop the service."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from consumer.records import Enriched
from tests.infrastructure.choose import Choice, InContainer
from tests.infrastructure.containers import secure_kafka_container
from tests.infrastructure.kafka_secure import SecureKafkaServer
from tests.infrastructure.start import started
from tests.infrastructure.topics import Topics
from tests.infrastructure.versions import Service
from tests.journey.publishing import send_raw
from tests.journey.running import ROOT, RunningService, Surroundings, wait_for_answers, wait_until

pytestmark = pytest.mark.integration


def consumer(surroundings: Surroundings, *words: str, stdin: str = "", **overrides: str) -> tuple[int, str]:
    """Runs a command: exit code and all output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    environment = {**kept, **surroundings.environment(**overrides)}
    command = [sys.executable, "-m", "consumer", *words]
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, cwd=ROOT, env=environment, timeout=90, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


# ── TLS and a password ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def secure_broker(infrastructure: Choice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafkaServer]:
    place = infrastructure.services[Service.KAFKA]
    if not isinstance(place, InContainer):
        pytest.skip("a broker with TLS is started in a container only")
    server = secure_kafka_container(place.image, tmp_path_factory.mktemp("tls"))
    started(server)
    yield server
    server.remove()


@pytest.fixture
def secure(secure_broker: SecureKafkaServer, registry_url: str, redis_url: str, redis_prefix: str) -> Iterator[Surroundings]:
    """Surroundings whose broker asks for a password."""
    names = Topics(*(f"{name}-{redis_prefix[5:-1]}" for name in ("in", "out", "dead")))
    admin = AdminClient({"bootstrap.servers": secure_broker.address, **secure_broker.properties()})
    for made in admin.create_topics([NewTopic(name, 1, 1) for name in (names.input, names.output, names.dead_letter)]).values():
        made.result(20)
    opened = Surroundings(secure_broker.address, registry_url, redis_url, redis_prefix, names)
    yield opened
    opened.close()


def test_the_service_and_its_commands_work_over_tls_with_a_password(
    secure: Surroundings, secure_broker: SecureKafkaServer
) -> None:
    """SASL_SSL with SCRAM-SHA-512: `doctor` finds all well, `publish` sends, the service enriches."""
    secure.overrides["KAFKA__PROPERTIES"] = json.dumps(secure_broker.properties())
    line = json.dumps({"listing_id": "a-1", "version": 1, "title": "The garden"})
    assert consumer(secure, "publish", "-", stdin=line)[0] == 0
    code, report = consumer(secure, "doctor")
    assert (code, f"kafka.input_topic: {secure.topics.input}, 1 partitions" in report) == (0, True), report
    with RunningService(secure) as service:
        service.wait_ready()
        wait_until(lambda: isinstance(secure.stored(["a-1"])["a-1"], Enriched), "the listing is stored")
        assert service.terminate() == 0


@pytest.mark.parametrize("words", [["doctor"], ["publish", "-"], ["run"]], ids=" ".join)
def test_a_wrong_password_is_called_one_with_exit_code_3(
    secure: Surroundings, secure_broker: SecureKafkaServer, words: list[str]
) -> None:
    """Not "timed out": the message says that the broker refused who we are, and does not show the password."""
    secure.overrides["KAFKA__PROPERTIES"] = json.dumps(secure_broker.properties(password="wrong-secret"))
    line = json.dumps({"listing_id": "a-1", "version": 1, "title": "The garden"})
    code, said = consumer(secure, *words, stdin=line, STARTUP__DEADLINE_SECONDS="3")
    assert (code, "authentication" in said.lower(), "wrong-secret" in said) == (3, True, False), said


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────


SECRET = "hush-hush"
LOGIN = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": SECRET}
NOWHERE = "127.0.0.1:1"
OUT_OF_REACH = {
    "redis": {"REDIS__URL": f"redis://u:{SECRET}@{NOWHERE}/0"},
    "registry, in its url": {"SCHEMA_REGISTRY__URL": f"http://u:{SECRET}@{NOWHERE}"},
    "registry, in a property": {
        "SCHEMA_REGISTRY__URL": f"http://{NOWHERE}",
        "SCHEMA_REGISTRY__PROPERTIES": json.dumps({"basic.auth.user.info": f"u:{SECRET}", "max.retries": 0}),
    },
    "kafka": {"KAFKA__BOOTSTRAP_SERVERS": NOWHERE, "KAFKA__PROPERTIES": json.dumps(LOGIN)},
}


@pytest.mark.parametrize("from_file", [False, True], ids=["variable", "file"])
@pytest.mark.parametrize("overrides", OUT_OF_REACH.values(), ids=OUT_OF_REACH.keys())
def test_no_secret_is_shown_while_its_server_is_out_of_reach(
    surroundings: Surroundings, tmp_path: Path, overrides: dict[str, str], from_file: bool
) -> None:
    """Log level debug, connections refused: neither the output nor an endpoint nor `doctor` shows a password, in a variable or
    in a file that `…_FILE` names."""
    if from_file:
        for name in [name for name, value in overrides.items() if SECRET in value]:
            (tmp_path / name).write_text(overrides[name], encoding="utf-8")
            overrides = {**{one: value for one, value in overrides.items() if one != name}, f"{name}_FILE": str(tmp_path / name)}
    overrides = {**overrides, "LOG__LEVEL": "debug", "STARTUP__DEADLINE_SECONDS": "2"}
    with RunningService(surroundings, **overrides) as service:
        wait_until(lambda: service.get("/livez")[0] != 0, "it listens")
        seen = [service.get(path)[1] for path in ("/livez", "/readyz", "/metrics", "/hush")]
        assert service.wait() == 3
        seen.append(service.log())
    code, said = consumer(surroundings, "doctor", **overrides)
    assert code == 3
    assert "DependencyUnavailable" in seen[-1]
    assert SECRET not in "\n".join([*seen, said])


# ── dead letters that are too large ─────────────────────────────────────────────────────────────────────────────


def test_a_dead_letter_too_large_for_its_topic_goes_without_its_value(surroundings: Surroundings) -> None:
    """The broker would refuse it for ever. Its size and sha256 go along, what follows is answered, and no replay deletes."""
    admin = AdminClient({"bootstrap.servers": surroundings.bootstrap_servers})
    limit = ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource("topic", surroundings.topics.dead_letter, incremental_configs=[limit])
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result(20)
    large = os.urandom(300_000)
    partition, offset = send_raw(surroundings, b"k", large)
    send_raw(surroundings, b"k", b"small")
    with RunningService(surroundings) as service:
        service.wait_ready()
        _, dead = wait_for_answers(surroundings, 2)
        assert "dead_letter_topic_too_small" in service.log()
    first, second = sorted(dead, key=lambda one: one.header("dlq.offset") or "")
    assert (first.value, second.value) == (b"", b"small")
    assert first.header("dlq.truncated") == f"300000 bytes, sha256 {hashlib.sha256(large).hexdigest()}"
    assert (first.header("dlq.partition"), first.header("dlq.offset")) == (str(partition), str(offset))
    code, said = consumer(surroundings, "doctor")
    assert (code, "expected max.message.bytes of 20000000 or more, found 100000" in said) == (2, True), said
    code, said = consumer(surroundings, "dead-letters", "replay")
    assert (code, f"1 records put back on {surroundings.topics.input}" in said) == (0, True), said
