"""Fixtures for tests on the software CUDA driver; a conftest imports those it needs.

pycuda binds to the driver once, when it is imported: all tests of a process share both, reset before each test.
"""

import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.infrastructure.commands import SetupError
from tests.software_cuda import stand_in
from tests.software_cuda.build import build
from tests.software_cuda.control import SoftCuda


@pytest.fixture(scope="session")
def loaded_soft_cuda() -> SoftCuda:
    """The driver, with the real pycuda importable from the cache."""
    try:
        built = build()
    except SetupError as reason:
        pytest.skip(str(reason))
    driver = SoftCuda(built.library)
    sys.path.append(str(built.packages))
    return driver


@pytest.fixture
def soft_cuda(loaded_soft_cuda: SoftCuda) -> Iterator[SoftCuda]:
    """The driver as if just loaded. After the test nothing may be live, and no rule may have been broken.

    Release what the test made before it ends. Where a rule is broken on purpose: `soft_cuda.take_violations()`.
    """
    gc.collect()  # pycuda objects that an earlier test left in cycles would be freed into this one
    loaded_soft_cuda.reset()
    yield loaded_soft_cuda
    loaded_soft_cuda.let_streams_go()
    gc.collect()
    found = {"not freed": loaded_soft_cuda.live(), "violations": loaded_soft_cuda.violations()}
    loaded_soft_cuda.reset()
    assert found == {"not freed": [], "violations": []}, found


@pytest.fixture
def pycuda_driver(soft_cuda: SoftCuda) -> Iterator[Any]:
    """The real `pycuda.driver` with the primary context current on the test's thread."""
    import pycuda.driver as cuda  # not before the driver is loaded

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    yield cuda
    gc.collect()  # an exception that was caught keeps its frames, and what they made
    context.pop()
    context.detach()


@pytest.fixture
def stand_in_tensorrt(soft_cuda: SoftCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in as the module `tensorrt`; how its kernels behave: `stand_in.behaviour()`."""
    module = stand_in.start(soft_cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    yield module
    stand_in.raise_kernel_errors()
