"""Every setting is reachable through values, and every value reaches the service: held against consumer/settings.py itself."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from consumer.settings import Settings, load_settings
from tests.kubernetes import values_schema
from tests.kubernetes.chart import VALUE_FILES, Manifest, only, pod, refusal, render

pytestmark = pytest.mark.integration

# For each setting a value that is not its default.
OTHER: dict[str, Any] = {
    "kafka.bootstrap_servers": "kafka-0:9092,kafka-1:9092",
    "kafka.group_id": "backfill",
    "kafka.input_topic": "a.listings",
    "kafka.output_topic": "a.enriched",
    "kafka.dead_letter_topic": "a.dead",
    "kafka.transactional_id_prefix": "backfill",
    "kafka.group_protocol": "consumer",
    "kafka.properties": {"security.protocol": "SSL", "session.timeout.ms": 6000, "enable.ssl.certificate.verification": False},
    "schema_registry.url": "https://registry",
    "schema_registry.properties": {"basic.auth.user.info": 'me:"quoted" \\ <&> 书'},
    "redis.url": "rediss://redis:6380/1",
    "redis.key_prefix": "books:",
    "redis.ttl_seconds": 31_536_000,
    "redis.ca": "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
    "model.bundle": "/models/other",
    "model.pointer": "/models/pointer",
    "model.engine_cache": "/engines",
    "model.engine_build_seconds": 60.5,
    "model.backend": "onnxruntime",
    "model.allow_fallback": False,
    "model.threads": 4,
    "model.public_key": "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n",
    "batch.max_records": 512,
    "batch.max_linger_ms": 20,
    "batch.max_cost": 8_000_000,
    "batch.max_in_flight": 5,
    "covers.fetch": True,
    "covers.allowed_hosts": ["covers.example.com", "*.cdn.example.com"],
    "covers.allowed_networks": ["10.1.0.0/16"],
    "covers.max_bytes": 6_000_000,
    "covers.timeout_ms": 1_500,
    "covers.max_connections": 16,
    "covers.cache_bytes": 10_000_000_000,
    "delivery.guarantee": "at_least_once",
    "delivery.transaction_ms": 250,
    "delivery.max_reject_share": 0.25,
    "delivery.reject_window": 2_000,
    "delivery.crashes_before_trial": 3,
    "http.host": "::",
    "http.port": 9090,
    "log.level": "debug",
    "log.format": "console",
    "log.termination_file": "/dev/another",
    "traces.endpoint": "http://collector:4318/v1/traces",
    "traces.sample_share": 0.25,
    "startup.deadline_seconds": 12.5,
    "shutdown.drain_seconds": 40,
    "health.stall_seconds": 300,
}


def names() -> list[str]:
    return [f"{section}.{name}" for section, values in Settings().model_dump().items() for name in values]


def nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    for setting, value in flat.items():
        section, name = setting.split(".")
        tree.setdefault(section, {})[name] = value
    return tree


def toml_of(manifests: list[Manifest]) -> str:
    text: str = only(manifests, "ConfigMap")["data"]["settings.toml"]
    return text


def test_the_schema_in_the_chart_is_that_of_the_settings() -> None:
    """`make chart-schema` was run after the last change of the settings."""
    assert values_schema.SCHEMA.read_text(encoding="utf-8") == values_schema.current()


def test_every_setting_comes_through_values(tmp_path: Path) -> None:
    """All settings at once, none at its default, as the service itself reads the rendered file."""
    assert set(OTHER) == set(names())
    file = tmp_path / "settings.toml"
    file.write_text(toml_of(render({"settings": nested(OTHER)})), encoding="utf-8")
    loaded, expected, default = load_settings(file, {}), Settings.model_validate(nested(OTHER)), Settings()
    assert loaded == expected
    for setting in OTHER:
        section, name = setting.split(".")
        assert getattr(getattr(loaded, section), name) != getattr(getattr(default, section), name), setting


def test_no_values_leave_every_default_in_force() -> None:
    """The chart says nothing that it was not told."""
    assert tomllib.loads(toml_of(render())) == {}


def test_every_setting_can_come_from_a_secret(tmp_path: Path) -> None:
    """Each has its file, its variable and its key; the service reads them as the chart mounts them."""
    texts = {name: json.dumps(value) if isinstance(value, dict) else _as_text(value) for name, value in OTHER.items()}
    manifests = render({"secretSettings": {name: {"value": text} for name, text in texts.items()}})
    container, secret = pod(manifests)["containers"][0], only(manifests, "Secret")
    environ = {one["name"]: one["value"] for one in container["env"] if one["name"] != "CONSUMER_CONFIG"}
    mounted = {
        source["secret"]["items"][0]["path"]: secret["stringData"][source["secret"]["items"][0]["key"]]
        for volume in pod(manifests)["volumes"]
        if volume["name"] == "secrets"
        for source in volume["projected"]["sources"]
    }
    for path, text in mounted.items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    moved = {name: value.replace("/etc/enricher/secrets", str(tmp_path)) for name, value in environ.items()}
    expected = Settings.model_validate(nested({**OTHER, "model.public_key": OTHER["model.public_key"].rstrip("\n")}))
    assert load_settings(None, moved) == expected


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("file", VALUE_FILES, ids=lambda file: file.stem)
def test_the_service_accepts_what_a_value_file_renders(file: Path, tmp_path: Path) -> None:
    """What helm lets through, the service must not refuse at its start."""
    settings = tmp_path / "settings.toml"
    settings.write_text(toml_of(render({"monitoring": {"dashboard": {"enabled": False}}}, file)), encoding="utf-8")
    load_settings(settings, {})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"settings": {"batch": {"max_records": 20_000}}}, "/settings/batch/max_records"),
        ({"settings": {"batch": {"max_record": 20}}}, "max_record"),
        ({"settings": {"kafka": {"group_protocol": "new"}}}, "/settings/kafka/group_protocol"),
        ({"settings": {"kafka": {"input_topic": "no spaces"}}}, "/settings/kafka/input_topic"),
        ({"settings": {"redis": {"ttl_seconds": "soon"}}}, "/settings/redis/ttl_seconds"),
        ({"secretSettings": {"redis.urll": {"value": "x"}}}, "redis.urll"),
        ({"secretSettings": {"redis.url": {"secret": "only-a-name"}}}, "/secretSettings/redis.url"),
        ({"replicas": "two"}, "/replicas"),
        ({"model": {"from": "ftp"}}, "/model/from"),
        ({"autoscaling": {"kind": "cron"}}, "/autoscaling/kind"),
        ({"replicaCount": 2}, "replicaCount"),
        (
            {"settings": {"redis": {"url": "redis://a"}}, "secretSettings": {"redis.url": {"value": "redis://b"}}},
            "redis.url: expected in settings or in secretSettings, found in both",
        ),
        ({"settings": {"model": {"bundle": "/a"}}, "model": {"bundle": "b"}}, "expected one of model.bundle and settings.model"),
        ({"model": {"bundle": "b", "from": "claim"}}, "expected the claim's name in model.claim, found none"),
        ({"engine": {"build": True}}, "expected gpu.count >= 1, found 0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    """Before anything is installed, with a message that names the value."""
    assert said in refusal(values).replace("settings.properties.", "/settings/")
