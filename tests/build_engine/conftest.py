"""The bundle that ships, and the real compiler."""

from pathlib import Path

import pytest

from build_engine.verify import Rows, verification_rows
from model.bundle import Bundle
from tests.infrastructure.commands import SetupError
from tests.infrastructure.tensorrt_rtx import fetch_tensorrt_rtx

SHIPPED = Path(__file__).resolve().parents[2] / "model" / "bundles" / "books"


@pytest.fixture(scope="session")
def shipped() -> Bundle:
    return Bundle.load(SHIPPED)


@pytest.fixture(scope="session")
def rows(shipped: Bundle) -> Rows:
    return verification_rows(shipped.golden()[0], tokens=shipped.manifest.features.tokens_max)


@pytest.fixture(scope="session")
def tensorrt_rtx() -> Path:
    """A folder for PYTHONPATH with `tensorrt_rtx_bindings`."""
    try:
        return fetch_tensorrt_rtx()
    except SetupError as reason:
        pytest.skip(str(reason))
