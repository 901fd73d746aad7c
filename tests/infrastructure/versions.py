"""Which brokers, stores and registries the tests run on: the one place that names versions and images."""

from enum import StrEnum

KAFKA = "4.3.1"
REDIS = "8.0.2"  # what Debian 13 has, so the official image and the home-built one are the same version
REGISTRY = "3.3.3"
TENSORRT_RTX = "1.7.1.116"
HELM = "v3.22.0"
KEDA = "v2.21.0"  # of these two the definitions of custom resources, to hold the chart against
PROMETHEUS_OPERATOR = "v0.85.0"


class Service(StrEnum):
    KAFKA = "kafka"
    REDIS = "redis"
    REGISTRY = "registry"


OFFICIAL_IMAGES = {
    Service.KAFKA: f"apache/kafka:{KAFKA}",
    Service.REDIS: f"redis:{REDIS}",
    Service.REGISTRY: f"apicurio/apicurio-registry:{REGISTRY}",
}
