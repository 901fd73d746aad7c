"""The compose file: the versions that the tests know, settings that exist, files that are there."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from consumer.settings import load_settings
from tests.infrastructure.versions import OFFICIAL_IMAGES

FILE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


def test_it_names_the_versions_that_the_tests_run_on() -> None:
    """Kafka, Redis and the registry."""
    for service, image in OFFICIAL_IMAGES.items():
        assert SERVICES[str(service)]["image"] == image


def test_the_service_accepts_its_settings() -> None:
    """And reads them from where the other services listen."""
    environment = SERVICES["enricher"]["environment"]
    loaded = load_settings(None, environment)
    assert loaded.kafka.bootstrap_servers == "kafka:9092"
    topics = [loaded.kafka.input_topic, loaded.kafka.output_topic, loaded.kafka.dead_letter_topic]
    assert all(
        topic in SERVICES["topics"]["command"][-1].split() or f"{topic};" in SERVICES["topics"]["command"][-1] for topic in topics
    )


def test_every_file_that_is_mounted_is_there() -> None:
    """Rules, dashboard and Grafana's provisioning."""
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [name for name in mounted if name.startswith("./")]
    assert len(files) == 5
    for name in files:
        assert (FILE.parent / name).is_file(), name


def test_compose_itself_accepts_it() -> None:
    """`config` reads and checks the whole file; nothing is started."""
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    done = subprocess.run(["docker-compose", "-f", str(FILE), "config", "-q"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
