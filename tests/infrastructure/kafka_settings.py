"""One broker's settings and its start, the same in the official image, in the home-built one and as a local process."""

from pathlib import PurePath

# 16 bytes in base64url, as Kafka wants it: "listing-enricher".
_CLUSTER_ID = "bGlzdGluZy1lbnJpY2hlcg"

MESSAGE_BYTES_MAX = 20_000_000


# Reads KAFKA_TEST_PROPERTIES (the text), _FOLDER (data), _JAVA and _LIBS. A broker that starts again keeps its data.
START_SCRIPT = f"""\
set -e
mkdir -p "$KAFKA_TEST_FOLDER"
printf '%s' "$KAFKA_TEST_PROPERTIES" > "$KAFKA_TEST_FOLDER/server.properties"
if [ ! -f "$KAFKA_TEST_FOLDER/data/meta.properties" ]; then
  "$KAFKA_TEST_JAVA" -Xmx256m -Dlog4j2.level=WARN -cp "$KAFKA_TEST_LIBS/*" \\
    kafka.tools.StorageTool format --standalone -t {_CLUSTER_ID} -c "$KAFKA_TEST_FOLDER/server.properties"
fi
exec "$KAFKA_TEST_JAVA" -Xmx512m -Xms128m -Dlog4j2.level=WARN -cp "$KAFKA_TEST_LIBS/*" \\
  kafka.Kafka "$KAFKA_TEST_FOLDER/server.properties"
"""


def environment(
    *,
    listen_host: str,
    advertised_host: str,
    port: int,
    controller_port: int,
    folder: PurePath,
    java: str,
    libs: PurePath,
) -> dict[str, str]:
    """What `START_SCRIPT` reads."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{listen_host}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{advertised_host}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        **_TEST_SETTINGS,
    }
    return {
        "KAFKA_TEST_PROPERTIES": "".join(f"{name}={value}\n" for name, value in settings.items()),
        "KAFKA_TEST_FOLDER": str(folder),
        "KAFKA_TEST_JAVA": java,
        "KAFKA_TEST_LIBS": str(libs),
    }


_TEST_SETTINGS = {
    # One broker: nothing can be replicated.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Few internal partitions: 50 of each, the default, cost seconds at the first group and the first transaction.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # A listing with its cover inside is larger than the default of 1 MB.
    "message.max.bytes": str(MESSAGE_BYTES_MAX),
    "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
    "auto.create.topics.enable": "false",  # a misspelt topic must fail
    # Both protocols, with time-outs as short as a fault test wants them.
    "group.coordinator.rebalance.protocols": "classic,consumer",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",  # KIP-848: the broker's to say, not the client's
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # Thousands of short-lived partitions: indexes of 10 MB each, the default, would fill the disk's address space.
    "log.index.size.max.bytes": "1048576",
    # A killed broker may register again only when its former session has timed out: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}
