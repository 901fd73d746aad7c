"""The procedures of `deploy/README.md`, "Disaster", done once each as they are written there."""

import io
import json
import subprocess
import time
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.codec import FRAME
from consumer.publish import Publisher
from consumer.records import Enriched
from tests.faults.checker import check
from tests.faults.history import asked, collect, wait_for_all_answers
from tests.infrastructure import images
from tests.infrastructure.versions import Service
from tests.journey.running import Surroundings, decode_enriched, read_topic, wait_until
from tests.kubernetes.cluster import Cluster, Release, bundle_image
from tests.kubernetes.conftest import NewRelease

pytestmark = pytest.mark.integration

SCHEMAS = Path(__file__).resolve().parents[2] / "consumer" / "schemas"


def publish(surroundings: Surroundings, listing_ids: list[str], *, version: int, price: float = 9.5) -> None:
    """One change event a listing; only price and version differ between versions."""
    publisher = Publisher(surroundings.settings(), surroundings.registry)
    for listing_id in listing_ids:
        listing = {"listing_id": listing_id, "version": version, "title": f"A history of {listing_id}", "language": "en"}
        publisher.publish({**listing, "price": price, "currency": "USD"})
    publisher.flush()


def reset_group(surroundings: Surroundings, release: Release, *where: str) -> None:
    """`replicas: 0`, Kafka's own tool, and the replicas again."""
    release.cluster.kubectl("scale", release.deployment, "--replicas=0")
    wait_until(lambda: release.pods() == [], "no pod is left")
    kafka = surroundings.settings().kafka
    tool = ["java", "-cp", "/opt/kafka/libs/*", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"]
    group = ["--group", kafka.group_id, "--topic", kafka.input_topic, "--reset-offsets", *where, "--execute"]
    argv = ["docker", "run", "--rm", "--network=host", images.present()[Service.KAFKA], *tool]
    done = subprocess.run(
        [*argv, "--bootstrap-server", kafka.bootstrap_servers, *group], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert kafka.input_topic in done.stdout, done.stdout
    release.cluster.kubectl("scale", release.deployment, "--replicas=1")
    release.wait_rolled_out()


def enriched(surroundings: Surroundings) -> list[dict[str, Any]]:
    """All events of the enriched topic, without deletions."""
    records = read_topic(surroundings.bootstrap_servers, surroundings.topics.output)
    return [event for event in decode_enriched(surroundings, records) if event is not None]


def test_the_enriched_topic_is_made_anew(surroundings: Surroundings, new_release: NewRelease) -> None:
    """Deleted, recreated, the input read again: every offset is answered in it once, unchanged listings without the model."""
    release = new_release()
    release.install()
    release.wait_rolled_out()
    listings = [f"book-{number}" for number in range(30)]
    publish(surroundings, listings, version=1)
    publish(surroundings, listings, version=2, price=12.5)
    publisher = Publisher(surroundings.settings(), surroundings.registry)
    publisher.delete("book-7", 3)
    publisher.flush()
    wait_for_all_answers(surroundings)

    admin, topic = AdminClient({"bootstrap.servers": surroundings.bootstrap_servers}), surroundings.topics.output
    admin.delete_topics([topic])[topic].result(timeout=30)
    start = time.monotonic()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic is gone")
    admin.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1)])[topic].result(timeout=30)
    reset_group(surroundings, release, "--to-earliest")
    wait_for_all_answers(surroundings)
    print(f"\nthe topic is whole {time.monotonic() - start:.1f} s after it was deleted")
    outcomes = Counter(event["outcome"] for event in enriched(surroundings))
    print(f"{asked(surroundings)} records, answered: {dict(outcomes)}")
    assert check(collect(surroundings)) == []
    assert outcomes["PREDICTED"] <= 2, "all but the deleted listing's are in the store"


def test_a_bad_models_answers_are_replaced(
    cluster: Cluster, surroundings: Surroundings, new_release: NewRelease, image: str, tmp_path: Path
) -> None:
    """Rolled back, the former bundle under a higher epoch, the group reset to when the bad one came: its answers are gone."""
    bad = bundle_image(cluster, image, tmp_path / "bad", version="9.0.0-bad", later_s=1)
    former = bundle_image(cluster, image, tmp_path / "former", version="9.0.1", later_s=2)
    release = new_release()
    release.install()
    release.wait_rolled_out()
    before, after = [f"before-{number}" for number in range(10)], [f"after-{number}" for number in range(10)]
    publish(surroundings, before, version=1)
    wait_for_all_answers(surroundings)

    release.upgrade(model={"bundle": bad, "pullPolicy": "Never"})
    shipped = datetime.now(tz=UTC)
    release.wait_rolled_out()
    publish(surroundings, after, version=1)
    wait_for_all_answers(surroundings)
    assert models(surroundings, after) == {"9.0.0-bad"}
    start = time.monotonic()
    release.rollback()
    release.wait_rolled_out()
    assert models(surroundings, after) == {"9.0.0-bad"}, "a rollback alone leaves them"

    release.upgrade(model={"bundle": former, "pullPolicy": "Never"})
    release.wait_rolled_out()
    reset_group(surroundings, release, "--to-datetime", shipped.strftime("%Y-%m-%dT%H:%M:%S.000"))
    wait_for_all_answers(surroundings)
    print(f"\nthe bad answers are gone {time.monotonic() - start:.1f} s after `helm rollback`")
    assert models(surroundings, after) == {"9.0.1"}
    assert len(models(surroundings, before)) == 1
    assert "9.0.1" not in models(surroundings, before), "what the bad one never saw was not read again"
    newest = {event["listing_id"]: event["model_version"] for event in enriched(surroundings)}
    assert {newest[listing_id] for listing_id in after} == {"9.0.1"}


def test_a_wrong_producers_dead_letters_come_back(surroundings: Surroundings, new_release: NewRelease) -> None:
    """Its schema is not in the registry: exit code 4, and why; registered, it goes on by itself; replayed, all are answered."""
    release = new_release({"delivery": {"reject_window": 100}})
    release.install()
    release.wait_rolled_out()
    text = (SCHEMAS / "listing.avsc").read_text(encoding="utf-8")
    schema = json.loads(text) | {"name": f"Listing{uuid.uuid4().hex[:8]}"}
    other = json.dumps({"type": "record", "name": f"Before{uuid.uuid4().hex[:8]}", "fields": []})
    schema_id = surroundings.registry.register(f"before-{uuid.uuid4().hex[:8]}", other) + 1
    send(surroundings, schema, schema_id, count=300)

    wait_until(lambda: waits_for(release) == "CrashLoopBackOff", "it is in CrashLoopBackOff")
    ended = release.ended()
    assert ended["exitCode"] == 4
    assert "51 of the last 100 records were rejected" in ended["message"], ended
    print(f"\nexit code 4: {ended['message'].strip().splitlines()[-1][:250]}")
    start = time.monotonic()
    subject = f"{surroundings.topics.input}-value"
    assert surroundings.registry.register(subject, json.dumps(schema)) == schema_id, "the registry counts otherwise"
    release.wait_rolled_out()
    wait_for_all_answers(surroundings, deadline_s=60)
    dead = len(read_topic(surroundings.bootstrap_servers, surroundings.topics.dead_letter))
    assert 0 < dead < 300
    run = ("exec", release.deployment, "-c", "service", "--", "python3", "-m", "consumer", "dead-letters", "replay")
    assert f"{dead} records put back" in release.cluster.kubectl(*run)
    wait_for_all_answers(surroundings)
    print(f"{dead} dead letters replayed, all answered {time.monotonic() - start:.1f} s after the schema was registered")
    assert {event["listing_id"] for event in enriched(surroundings)} == {f"book-{number}" for number in range(300)}
    assert len(read_topic(surroundings.bootstrap_servers, surroundings.topics.dead_letter)) == dead


def send(surroundings: Surroundings, schema: dict[str, Any], schema_id: int, *, count: int) -> None:
    """That many listings as Avro of this schema, framed with that number."""
    producer = Producer({"bootstrap.servers": surroundings.bootstrap_servers, "log_level": 0})
    parsed = fastavro.parse_schema(schema)
    for number in range(count):
        avro = io.BytesIO()
        fastavro.schemaless_writer(avro, parsed, {"listing_id": f"book-{number}", "version": 1, "title": f"Volume {number}"})
        value = FRAME.pack(0, schema_id) + avro.getvalue()
        producer.produce(surroundings.topics.input, key=f"book-{number}", value=value)
    assert producer.flush(30) == 0


def models(surroundings: Surroundings, listing_ids: list[str]) -> set[str]:
    """Versions of the models whose answers the store holds for these listings."""
    stored = surroundings.stored(listing_ids).values()
    return {one.model.rpartition("@")[2] if isinstance(one, Enriched) else "none" for one in stored}


def waits_for(release: Release) -> str:
    """Why the kubelet does not run the container just now."""
    return str(release.state().get("state", {}).get("waiting", {}).get("reason", ""))
