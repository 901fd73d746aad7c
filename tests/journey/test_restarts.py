"""What a restart, an abort and a late event must not do."""

import threading
import time
import uuid
from collections import Counter
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from consumer.delivery import ExactlyOnce
from consumer.kafka import KafkaSource
from consumer.records import Enriched, OutputRecord, Tombstone
from consumer.settings import KafkaSettings
from tests.infrastructure.topics import Topics
from tests.journey.publishing import delete, publish
from tests.journey.running import RunningService, Surroundings, decode_enriched, read_topic, wait_for_answers, wait_until

pytestmark = pytest.mark.integration


def test_sigterm_in_mid_stream_leaves_no_gap_and_no_duplicate(
    surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]]
) -> None:
    """The service is stopped by SIGTERM three times while events stream in; every offset is answered exactly once."""
    feeding = threading.Thread(target=_feed_slowly, args=(surroundings, two_thousand_listings))
    feeding.start()
    answered = 0
    for _ in range(3):
        with RunningService(surroundings) as service:
            service.wait_ready()
            already = answered

            def moved(already: int = already) -> bool:
                return len(read_topic(surroundings.bootstrap_servers, surroundings.topics.output)) > already + 50

            wait_until(moved, "the service makes progress")
            assert service.terminate(deadline_s=30) == 0
            assert "drained" in service.log()
        answered = len(read_topic(surroundings.bootstrap_servers, surroundings.topics.output))
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, len(two_thousand_listings))
        feeding.join(timeout=60)
        assert service.terminate() == 0
    inputs = read_topic(surroundings.bootstrap_servers, surroundings.topics.input)
    assert dead == []
    assert answered < len(two_thousand_listings), "the stream was over before the last restart: nothing was tested"
    assert Counter(record.source for record in enriched) == Counter((one.partition, one.offset) for one in inputs)


def _feed_slowly(surroundings: Surroundings, listings: list[dict[str, Any]]) -> None:
    for start in range(0, len(listings), 50):
        publish(surroundings, listings[start : start + 50])
        time.sleep(0.3)


def test_kill_in_mid_stream_leaves_no_gap_and_no_duplicate(
    surroundings: Surroundings, two_thousand_listings: list[dict[str, Any]]
) -> None:
    """SIGKILL while a transaction is open: read_committed readers see each offset answered exactly once."""
    publish(surroundings, two_thousand_listings)
    for pause_s in (0.3, 0.8):
        with RunningService(surroundings, BATCH__MAX_RECORDS="32", KAFKA__PROPERTIES='{"session.timeout.ms": 6000}') as service:
            wait_until(lambda service=service: "partitions_assigned" in service.log(), "partitions are assigned")
            time.sleep(pause_s)
            service.kill()
    with RunningService(surroundings) as service:
        service.wait_ready()
        enriched, dead = wait_for_answers(surroundings, len(two_thousand_listings), deadline_s=90)
        assert service.terminate() == 0
    inputs = read_topic(surroundings.bootstrap_servers, surroundings.topics.input)
    assert dead == []
    assert Counter(record.source for record in enriched) == Counter((one.partition, one.offset) for one in inputs)


def test_an_older_version_never_overwrites_a_newer_one(surroundings: Surroundings) -> None:
    """A late event of an older version is answered with what the store holds, and changes nothing."""
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": "a-1", "version": 5, "title": "The newer title"}])
        wait_for_answers(surroundings, 1)
        newer = surroundings.stored(["a-1"])["a-1"]
        publish(surroundings, [{"listing_id": "a-1", "version": 3, "title": "An older title of a cookbook"}])
        enriched, _ = wait_for_answers(surroundings, 2)
    assert surroundings.stored(["a-1"])["a-1"] == newer
    last = decode_enriched(surroundings, enriched)[-1]
    assert last is not None
    assert (last["version"], last["outcome"]) == (5, "SUPERSEDED")


def test_a_delete_is_not_resurrected_by_a_late_update(surroundings: Surroundings) -> None:
    """After a deletion at version 5 an update of version 4 stays without effect; one of version 6 brings the listing back."""
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": "a-1", "version": 4, "title": "Gone with the Wind"}])
        delete(surroundings, "a-1", version=5)
        publish(surroundings, [{"listing_id": "a-1", "version": 4, "title": "Gone with the Wind, again"}])
        enriched, _ = wait_for_answers(surroundings, 3)
        assert surroundings.stored(["a-1"])["a-1"] == Tombstone("a-1", 5)
        assert decode_enriched(surroundings, enriched)[-2:] == [None, None]
        publish(surroundings, [{"listing_id": "a-1", "version": 6, "title": "Gone with the Wind"}])
        wait_for_answers(surroundings, 4)
    state = surroundings.stored(["a-1"])["a-1"]
    assert isinstance(state, Enriched)
    assert state.version == 6


def test_aborted_input_is_not_enriched_and_aborted_output_is_invisible(surroundings: Surroundings) -> None:
    """Records of an aborted transaction are no events; a read_committed reader sees none of an aborted answer."""
    shop = Producer(
        {"bootstrap.servers": surroundings.bootstrap_servers, "transactional.id": f"shop-{surroundings.topics.input}"}
    )
    shop.init_transactions(30)
    shop.begin_transaction()
    shop.produce(surroundings.topics.input, key=b"never", value=b"not even Avro")
    shop.produce(surroundings.topics.output, key=b"never", value=b"an answer that was taken back")
    shop.flush(10)
    shop.abort_transaction(30)
    with RunningService(surroundings) as service:
        service.wait_ready()
        publish(surroundings, [{"listing_id": "a-1", "version": 1, "title": "The only event"}])
        enriched, dead = wait_for_answers(surroundings, 1)
    assert [record.key for record in enriched] == [b"a-1"]
    assert dead == []
    everything = read_topic(surroundings.bootstrap_servers, surroundings.topics.output, isolation="read_uncommitted")
    assert b"never" in [record.key for record in everything]


def test_a_producer_that_replaces_another_ends_what_that_had_open(bootstrap_servers: str, topics: Any) -> None:
    """Readers of committed data are not kept waiting for the transaction's time-out, which is a minute here."""
    created: Topics = topics(partitions=1)
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers, properties={"transaction.timeout.ms": 60_000})
    delivery = ExactlyOnce(settings, source=cast("KafkaSource", None))
    delivery.send([OutputRecord(created.output, b"dropped", b"", ())])
    assert delivery._producer.flush(10) == 0
    after = Producer({"bootstrap.servers": bootstrap_servers})
    after.produce(created.output, b"", b"after")
    assert after.flush(10) == 0
    assert read_topic(bootstrap_servers, created.output) == [], "nothing was open: nothing is tested"
    delivery._unusable = True
    assert delivery.abort() is False
    wait_until(lambda: len(read_topic(bootstrap_servers, created.output)) > 0, "the reader goes on", deadline_s=20)
    assert [one.key for one in read_topic(bootstrap_servers, created.output)] == [b"after"]
    delivery.close()


def test_a_partition_does_not_begin_anew_while_a_dead_member_s_transaction_is_open(bootstrap_servers: str, topics: Any) -> None:
    """The group cannot tell its offset then, and a rebalance meanwhile makes librdkafka begin at the first record."""
    topic, group = topics(partitions=2).input, f"begin-{uuid.uuid4().hex[:10]}"
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for number in range(40):
        producer.produce(topic, str(number), partition=number % 2)
    assert producer.flush(10) == 0
    dead = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": group, "transaction.timeout.ms": 60_000})
    dead.init_transactions(10)
    stranger = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group})  # whose offsets the broker lets pass
    places = [TopicPartition(topic, 0, 10), TopicPartition(topic, 1, 12)]
    for partitions in (places, places[:1]):
        dead.begin_transaction()
        dead.send_offsets_to_transaction(partitions, stranger.consumer_group_metadata(), 10)
        if partitions is places:
            dead.commit_transaction(10)
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers, input_topic=topic, group_id=group)
    source = KafkaSource(settings, before_revoked=_nothing, after_lost=_nothing, on_rebalance=_nothing)
    client = source._consumer
    client.unsubscribe()  # the test assigns instead of the group
    begun: dict[int, int] = {}

    def read() -> bool:
        for record in source.poll(records_max=100, idle_s=0.1, linger_s=0.0):
            begun.setdefault(record.partition, record.offset)
        return 0 in begun

    def assign(number: int) -> None:
        source._assigned(client, [TopicPartition(topic, number)])
        client.incremental_assign([TopicPartition(topic, number)])

    assign(0)
    for _ in range(20):  # the group is found, and asked; asked for both at once it would tell of neither
        read()
    assign(1)
    wait_until(lambda: read() or 1 in begun, "one begins")
    read()
    read()
    assert begun == {1: 12}, "the one waits, the other does not"
    dead.abort_transaction(10)
    wait_until(read, "the group tells where the partition is", deadline_s=20)
    assert begun == {0: 10, 1: 12}
    source.close()
    stranger.close()


def _nothing(*_: object) -> None: ...
