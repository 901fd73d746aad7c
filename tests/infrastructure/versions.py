"""Which brokers, stores and registries the tests run on: the one place that names versions and images."""

from enum import StrEnum

KAFKA = "4.3.1"
REDIS = "8.0.2"  # what Debian 13 has, so the official image and the home-built one are the same version
REGISTRY = "3.3.3"
TENSORRT_RTX = "1.7.1.116"
PYCUDA = "2026.1"
CUDA_HEADERS = "12.9.79"  # what the software CUDA driver and pycuda are compiled against
# Python bindings (PyPI) and the libraries of that version (Maven Central): the oldest we support, the last of 10, the newest.
TENSORRT = {
    "10.6": ("tensorrt-cu12-bindings==10.6.0", "org.bytedeco:tensorrt:10.6-1.5.11"),
    "10.15": ("tensorrt-cu13-bindings==10.15.1.29", "org.bytedeco:tensorrt:10.15-1.5.13"),
    "11.2": ("tensorrt-cu13-bindings==11.2.1.2", "org.bytedeco:tensorrt:11.2-1.5.14"),
}
HELM = "v3.22.0"
KUBECONFORM = "v0.8.0"
KUBERNETES = "v1.34.4"  # of these three the schemas, to hold the chart against
KEDA = "v2.21.0"
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
