"""Stand-ins for the official images that `deploy/compose.yaml` names, where none can be pulled.

Equal in what the file relies on: environment, commands, users, folders. Kafka's settings are made from the environment by Kafka's
own `KafkaDockerWrapper`, as in the official image. Grafana has none.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.infrastructure import docker_engine, images, prometheus, service_image
from tests.infrastructure.commands import SetupError
from tests.infrastructure.versions import Service

_KAFKA = """
COPY kafka-topics.sh /opt/kafka/bin/
COPY run /etc/kafka/docker/
RUN useradd --create-home --uid 1000 appuser \\
 && mkdir -p /var/lib/kafka/data /mnt/shared/config /opt/kafka/config \\
 && for file in server.properties log4j2.yaml tools-log4j2.yaml; do echo "# none" > /etc/kafka/docker/$file; done \\
 && chmod +x /opt/kafka/bin/kafka-topics.sh \\
 && chown -R appuser:appuser /opt/kafka/config /var/lib/kafka /mnt/shared/config
USER appuser
ENV CLUSTER_ID=5L6g3nShT-eMCtK--X86sw
VOLUME ["/var/lib/kafka/data", "/mnt/shared/config"]
CMD ["bash", "/etc/kafka/docker/run"]
"""
_KAFKA_FILES = {
    "kafka-topics.sh": """#!/bin/sh
exec java -cp '/opt/kafka/libs/*' org.apache.kafka.tools.TopicCommand "$@"
""",
    # The official one, too, takes "already formatted" for success.
    "run": """set -e
folders='--default-configs-dir /etc/kafka/docker --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config'
said=$(java -cp '/opt/kafka/libs/*' kafka.docker.KafkaDockerWrapper setup $folders 2>&1) || grep 'already formatted' <<< "$said"
exec java -Xmx512m -cp '/opt/kafka/libs/*' kafka.Kafka /opt/kafka/config/server.properties
""",
}
# The official image's own redis-server was built to answer other hosts without a password; Debian's has to be told.
_REDIS = """
RUN mkdir -p /data && chown redis:redis /data
WORKDIR /data
VOLUME /data
USER redis
ENTRYPOINT ["sh", "-c", "exec \\"$@\\" --protected-mode no", "--"]
"""
_PROMETHEUS = """
COPY prometheus /bin/prometheus
RUN mkdir -p /etc/prometheus /prometheus && chown nobody /prometheus
USER nobody
VOLUME /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


def stand_ins() -> dict[str, str]:
    """Service of the compose file to the image built here, for a file that overrides it. Raises: SetupError."""
    kafka = _built("kafka", images.home_built(Service.KAFKA), _KAFKA, _KAFKA_FILES)
    prometheus_program = prometheus.find("prometheus")
    if prometheus_program is None:
        raise SetupError("expected prometheus, found none: run `python -m tests.infrastructure prepare`")
    return {
        "kafka": kafka,
        "topics": kafka,
        "registry": images.home_built(Service.REGISTRY),
        "redis": _built("redis", images.home_built(Service.REDIS), _REDIS),
        "prometheus": _built("prometheus", images.BASE, _PROMETHEUS, {"prometheus": Path(prometheus_program)}),
        "enricher": service_image.build(),
    }


def _built(name: str, base: str, dockerfile: str, files: Mapping[str, str | Path] | None = None) -> str:
    """The base with what the Dockerfile adds, under a name that no official image has; `files`: texts, or files to copy."""
    with docker_engine.client() as engine:
        if not images.has(engine, base):
            raise SetupError(f"expected {base}, found none: run `python -m tests.infrastructure prepare`")
    tag = f"listing-enricher-test/compose-{name}:{base.rpartition(':')[2]}"
    with tempfile.TemporaryDirectory() as folder:
        for file, source in (files or {}).items():
            if isinstance(source, Path):
                shutil.copy(source, Path(folder) / file)
            else:
                (Path(folder) / file).write_text(source, encoding="utf-8")
        service_image.build_on(base, dockerfile, Path(folder), tag=tag)
    return tag
