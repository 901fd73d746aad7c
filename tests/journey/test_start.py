"""How the service starts, waits and gives up."""

import json

import pytest

from consumer.errors import SettingsError
from consumer.schemas import ENRICHED_LISTING, LISTING, LISTING_ENVELOPE
from tests.infrastructure.servers import free_port
from tests.journey.publishing import publish
from tests.journey.running import RunningService, Surroundings, wait_for_answers, wait_until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("text", [LISTING, LISTING_ENVELOPE, ENRICHED_LISTING], ids=["listing", "envelope", "enriched"])
def test_schemas_pass_the_registrys_backward_check(surroundings: Surroundings, text: str) -> None:
    """A next version with one more optional field is compatible; one with a required field is refused by the registry."""
    registry = surroundings.registry
    subject = f"{surroundings.topics.input}-evolution"
    registry.register(subject, text)
    registry.check_compatible(subject, text)
    schema = json.loads(text)
    optional = {"name": "added_later", "type": ["null", "string"], "default": None}
    registry.check_compatible(subject, json.dumps({**schema, "fields": [*schema["fields"], optional]}))
    required = {"name": "added_later", "type": "string"}
    with pytest.raises(SettingsError, match="compatible"):
        registry.check_compatible(subject, json.dumps({**schema, "fields": [*schema["fields"], required]}))


@pytest.mark.parametrize("absent", ["KAFKA__BOOTSTRAP_SERVERS", "REDIS__URL", "SCHEMA_REGISTRY__URL"])
def test_an_absent_dependency_is_waited_for_then_exit_code_3(surroundings: Surroundings, absent: str) -> None:
    """With nothing listening there, the service waits for startup.deadline_seconds and says what it waited for."""
    address = f"127.0.0.1:{free_port()}"
    value = {"REDIS__URL": f"redis://{address}/0", "SCHEMA_REGISTRY__URL": f"http://{address}"}.get(absent, address)
    with RunningService(surroundings, STARTUP__DEADLINE_SECONDS="3", **{absent: value}) as service:
        if absent == "REDIS__URL":  # the others are asked for as long as the deadline is
            wait_until(lambda: address.rpartition(":")[2] in service.get("/readyz")[1], "/readyz names what is waited for")
        assert service.wait() == 3
        log = service.log()
    assert "DependencyUnavailable" in log
    assert "startup.deadline_seconds" in log


def test_missing_topics_are_named(surroundings: Surroundings) -> None:
    """A topic that does not exist ends the start with exit code 3 and its name."""
    with RunningService(surroundings, STARTUP__DEADLINE_SECONDS="2", KAFKA__OUTPUT_TOPIC="no-such-topic") as service:
        assert service.wait() == 3
        assert "missing: no-such-topic" in service.log()


def test_a_wrong_setting_ends_with_exit_code_2(surroundings: Surroundings) -> None:
    """The message names the setting, what was expected and what was found."""
    with RunningService(surroundings, BATCH__MAX_RECORDS="many") as service:
        assert service.wait() == 2
        log = service.log()
    assert "batch.max_records" in log
    assert "many" in log


def test_a_wrong_bundle_ends_with_exit_code_2(surroundings: Surroundings) -> None:
    """A bundle folder that is none is named."""
    with RunningService(surroundings, MODEL__BUNDLE="/nonexistent") as service:
        assert service.wait() == 2
        assert "/nonexistent" in service.log()


def test_too_many_rejects_stop_the_service_with_exit_code_4(surroundings: Surroundings) -> None:
    """A deployment that rejects everything does not drain the topic into the dead letters."""
    from tests.journey.publishing import send_raw

    for number in range(40):
        send_raw(surroundings, f"k-{number}".encode(), b"rubbish")
    with RunningService(surroundings, DELIVERY__REJECT_WINDOW="40") as service:
        assert service.wait() == 4
        assert "CircuitOpen" in service.log()


def test_the_endpoints_tell_the_truth(surroundings: Surroundings) -> None:
    """/livez, /readyz and /metrics answer while it works; the metrics count what went through."""
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": f"a-{number}", "version": 1, "title": "A title"} for number in range(10)])
        wait_for_answers(surroundings, 10)
        assert service.get("/livez")[0] == 200
        metrics = service.get("/metrics")[1]
        assert service.get("/nothing")[0] == 404
    assert 'enricher_records_total{outcome="predicted"} 10.0' in metrics
    assert "enricher_model_info{" in metrics
