"""What the other tests take for granted about the broker, the store and the registry, whatever they run on."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from tests.infrastructure.servers import KafkaServer, RedisServer, RegistryServer
from tests.infrastructure.topics import Topics

pytestmark = pytest.mark.integration

SECONDS_MAX = 30.0
MakeTopics = Callable[..., Topics]


def a_producer(bootstrap_servers: str, **properties: object) -> Producer:
    return Producer({"bootstrap.servers": bootstrap_servers, "message.timeout.ms": 20_000, **properties})


def read_all(bootstrap_servers: str, topic: str, count: int, *, protocol: str = "classic") -> list[bytes | None]:
    """The first `count` values of a topic as a `read_committed` group sees them; fewer when the time is up."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"test-{uuid.uuid4().hex[:10]}",
            "group.protocol": protocol,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    found: list[Message] = []
    deadline = time.monotonic() + SECONDS_MAX
    try:
        while len(found) < count and time.monotonic() < deadline:
            found += consumer.consume(count, timeout=0.5)
        found += consumer.consume(count, timeout=0.5)  # one too many would show here
    finally:
        consumer.close()
    assert [message.error() for message in found if message.error()] == []
    return [message.value() for message in found]


def produce(producer: Producer, topic: str, *values: bytes) -> None:
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(SECONDS_MAX) == 0


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_record_comes_back_in_both_group_protocols(bootstrap_servers: str, topics: MakeTopics, protocol: str) -> None:
    names = topics(partitions=2)
    produce(a_producer(bootstrap_servers), names.input, b"a used hardback")
    assert read_all(bootstrap_servers, names.input, 1, protocol=protocol) == [b"a used hardback"]


def test_a_record_of_several_megabytes_is_accepted(bootstrap_servers: str, topics: MakeTopics) -> None:
    names = topics(partitions=1)
    cover = b"x" * 5_000_000
    produce(a_producer(bootstrap_servers, **{"message.max.bytes": 20_000_000}), names.input, cover)
    assert read_all(bootstrap_servers, names.input, 1) == [cover]


def test_an_aborted_record_is_hidden_and_a_committed_one_is_not(bootstrap_servers: str, topics: MakeTopics) -> None:
    names = topics(partitions=1)
    producer = a_producer(bootstrap_servers, **{"transactional.id": f"test-{uuid.uuid4().hex[:10]}"})
    producer.init_transactions(SECONDS_MAX)
    producer.begin_transaction()
    produce(producer, names.output, b"aborted")
    producer.abort_transaction(SECONDS_MAX)
    producer.begin_transaction()
    produce(producer, names.output, b"committed")
    producer.commit_transaction(SECONDS_MAX)
    assert read_all(bootstrap_servers, names.output, 1) == [b"committed"]


def test_offsets_are_committed_with_the_transaction(bootstrap_servers: str, topics: MakeTopics) -> None:
    names = topics(partitions=1)
    produce(a_producer(bootstrap_servers), names.input, b"one", b"two")
    group = {"bootstrap.servers": bootstrap_servers, "group.id": f"test-{uuid.uuid4().hex[:10]}"}
    consumer = Consumer({**group, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    producer = a_producer(bootstrap_servers, **{"transactional.id": f"test-{uuid.uuid4().hex[:10]}"})
    producer.init_transactions(SECONDS_MAX)
    try:
        consumer.subscribe([names.input])
        assert len(consumer.consume(2, timeout=SECONDS_MAX)) > 0
        producer.begin_transaction()
        position = [TopicPartition(names.input, 0, 2)]
        producer.send_offsets_to_transaction(position, consumer.consumer_group_metadata(), SECONDS_MAX)
        producer.commit_transaction(SECONDS_MAX)
        assert consumer.committed([TopicPartition(names.input, 0)], timeout=SECONDS_MAX)[0].offset == 2
    finally:
        consumer.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_broker_that_comes_back_has_its_address_and_its_records(
    kafka_broker: KafkaServer, topics: MakeTopics, end: str
) -> None:
    names = topics(partitions=1)
    address = kafka_broker.bootstrap_servers
    produce(a_producer(address, acks="all"), names.input, b"before")
    getattr(kafka_broker, end)()
    assert not kafka_broker.is_running()
    kafka_broker.start()
    assert kafka_broker.bootstrap_servers == address
    produce(a_producer(address), names.input, b"after")
    assert read_all(address, names.input, 2) == [b"before", b"after"]


def test_a_paused_broker_answers_nothing_until_it_goes_on(kafka_broker: KafkaServer, topics: MakeTopics) -> None:
    names = topics(partitions=1)
    producer = a_producer(kafka_broker.bootstrap_servers)
    produce(producer, names.input, b"before")
    kafka_broker.pause()
    producer.produce(names.input, b"while paused")
    assert producer.flush(1.0) == 1
    kafka_broker.unpause()
    assert producer.flush(SECONDS_MAX) == 0
    assert read_all(kafka_broker.bootstrap_servers, names.input, 2) == [b"before", b"while paused"]


def test_a_topic_that_nobody_created_is_an_error(bootstrap_servers: str) -> None:
    errors: list[object] = []
    producer = a_producer(bootstrap_servers, **{"topic.metadata.propagation.max.ms": 1000})
    try:
        producer.produce("no-such-topic", b"", on_delivery=lambda error, _: errors.append(error))
        producer.flush(SECONDS_MAX)
    except KafkaException as error:
        errors.append(error)
    assert "UNKNOWN_TOPIC" in str(errors)


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=10)
    yield client
    client.close()


def test_redis_is_new_enough_and_runs_lua(store: redis.Redis, redis_prefix: str) -> None:
    major, minor = map(int, store.info("server")["redis_version"].split(".")[:2])
    assert (major, minor) >= (6, 2)
    script = store.register_script("redis.call('HSET', KEYS[1], 'version', ARGV[1]); return redis.call('HGETALL', KEYS[1])")
    assert script(keys=[f"{redis_prefix}book"], args=["17"]) == ["version", "17"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_store_that_comes_back_has_its_address_and_its_data(
    redis_server: RedisServer, store: redis.Redis, redis_prefix: str, end: str
) -> None:
    store.set(f"{redis_prefix}book", "17")
    address = redis_server.address
    getattr(redis_server, end)()
    with pytest.raises(redis.ConnectionError):
        store.ping()
    redis_server.start()
    assert redis_server.address == address
    assert store.get(f"{redis_prefix}book") == "17"


def a_schema(*fields: Mapping[str, object]) -> Schema:
    return Schema(json.dumps({"type": "record", "name": "Listing", "fields": fields}), "AVRO")


LISTING_ID = {"name": "listing_id", "type": "string"}


def test_the_registry_takes_a_compatible_schema_and_refuses_a_breaking_one(registry_url: str) -> None:
    subject = f"test-{uuid.uuid4().hex[:10]}-value"
    with SchemaRegistryClient({"url": registry_url}) as registry:
        first = registry.register_schema(subject, a_schema(LISTING_ID))
        registry.set_compatibility(subject, "BACKWARD")
        optional = {"name": "title", "type": ["null", "string"], "default": None}
        assert registry.register_schema(subject, a_schema(LISTING_ID, optional)) != first
        with pytest.raises(SchemaRegistryError) as refused:
            registry.register_schema(subject, a_schema(LISTING_ID, {"name": "price", "type": "double"}))
        assert refused.value.http_status_code == 409
        assert registry.get_latest_version(subject).version == 2


def test_a_registry_that_comes_back_has_its_address(registry_server: RegistryServer) -> None:
    url = registry_server.url
    registry_server.stop()
    registry_server.start()
    assert registry_server.url == url
    with SchemaRegistryClient({"url": url}) as registry:
        registry.get_subjects()
