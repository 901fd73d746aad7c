"""`compose.yaml` at work, as on a laptop, on images built here; without Grafana, which cannot be had here."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infrastructure import compose, docker_engine
from tests.infrastructure.commands import SetupError
from tests.journey.running import wait_until
from tests.kubernetes.test_compose import FILE

pytestmark = pytest.mark.integration

LISTING = {"listing_id": "laptop-1", "version": 1, "title": "The Art of Computer Programming", "price": 59.0, "currency": "USD"}


class Laptop:
    """The file with our images laid over it, under a project name of its own."""

    def __init__(self, override: Path, images: dict[str, str]) -> None:
        override.write_text(yaml.safe_dump({"services": {service: {"image": image} for service, image in images.items()}}))
        project = f"enricher-{uuid.uuid4().hex[:8]}"
        self._argv = ["docker-compose", "--project-name", project, "--file", str(FILE), "--file", str(override)]
        self._services = sorted(images)

    def up(self) -> None:
        """Returns when the service is ready."""
        self("up", "--detach", "--no-build", *self._services)
        wait_until(lambda: asked("http://127.0.0.1:8080/readyz") is not None, "the service is ready", deadline_s=120)

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run([*self._argv, *arguments], input=given, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, listing_id: str) -> Any:
        """What the store holds, by the service's own command; None where it holds nothing."""
        argv = [*self._argv, "exec", "-T", "enricher", "python3", "-m", "consumer", "get", listing_id]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None


def asked(url: str) -> Any:
    """The JSON at that address; None while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def sample(query: str) -> float:
    """What Prometheus says of it; 0 where it has no sample."""
    answer = asked(f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    result = answer["data"]["result"] if answer else []
    return float(result[0]["value"][1]) if result else 0.0


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    """Up and ready; nothing of it is left at the end."""
    try:
        with docker_engine.client(timeout_seconds=10):
            opened = Laptop(tmp_path / "override.yaml", compose.stand_ins())
    except SetupError as missing:
        pytest.skip(str(missing))
    start = time.monotonic()
    try:
        opened.up()
        print(f"\nready {time.monotonic() - start:.1f} s after `up`")
        yield opened
    finally:
        print(opened("logs", "--no-color", "--tail=12"))
        opened("down", "--volumes")


def test_a_listing_goes_through_and_stays(laptop: Laptop) -> None:
    """Published as its first lines say, enriched, scraped; after `down` and `up` it is there, and the next one is worked on."""
    publish = ("run", "--rm", "-T", "enricher", "publish", "-")
    laptop(*publish, given=json.dumps(LISTING))
    wait_until(lambda: laptop.get("laptop-1") is not None, "it is in the store")
    stored = laptop.get("laptop-1")
    wait_until(lambda: sample('sum(enricher_records_total{outcome="predicted"})') == 1, "Prometheus has counted it")
    assert sample('up{job="listing-enricher"}') == 1
    groups = asked("http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
    assert [rule["health"] for group in groups for rule in group["rules"] if rule["health"] != "ok"] == []

    laptop("down")
    laptop.up()
    assert laptop.get("laptop-1") == stored
    laptop(*publish, given=json.dumps({**LISTING, "version": 2, "price": 61.0}))
    wait_until(lambda: sample('sum(enricher_records_total{outcome="reused"})') == 1, "the next is answered from what was kept")
    assert laptop.get("laptop-1") != stored
