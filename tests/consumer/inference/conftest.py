"""The bundle that ships with its golden rows, and the software CUDA driver."""

from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.consumer.inference.contract import Golden, golden_of
from tests.software_cuda.fixtures import loaded_soft_cuda, soft_cuda, stand_in_tensorrt

__all__ = ["loaded_soft_cuda", "soft_cuda", "stand_in_tensorrt"]


@pytest.fixture(scope="session")
def shipped() -> Bundle:
    return Bundle.load(Path(__file__).resolve().parents[3] / "model" / "bundles" / "books")


@pytest.fixture(scope="session")
def golden(shipped: Bundle) -> Golden:
    return golden_of(shipped)
