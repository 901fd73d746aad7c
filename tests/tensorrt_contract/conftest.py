"""The real TensorRT modules are 2 GB to download: their tests run in `make test-gpu-contract`, with TENSORRT_CONTRACT=1."""

import os

import pytest

from tests.consumer.inference.conftest import golden, shipped
from tests.infrastructure import versions
from tests.infrastructure.tensorrt import TensorRT, fetch_tensorrt
from tests.software_cuda.fixtures import loaded_soft_cuda, soft_cuda, stand_in_tensorrt

__all__ = ["golden", "loaded_soft_cuda", "shipped", "soft_cuda", "stand_in_tensorrt"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TENSORRT_CONTRACT") != "1":
        left_out = [item for item in items if "tensorrt" in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in left_out]
        if left_out:
            config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session", params=sorted(versions.TENSORRT))
def tensorrt(request: pytest.FixtureRequest) -> TensorRT:
    return fetch_tensorrt(request.param)
