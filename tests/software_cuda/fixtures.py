"""Fixtures for tests on the software CUDA driver; a conftest imports all of them, or those it needs and what they need.

pycuda binds to the driver once, when it is imported: all tests of a process share both, the driver reset before each test. Other
tests do not see pycuda.
"""

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from tests.infrastructure.commands import SetupError
from tests.software_cuda import stand_in
from tests.software_cuda.build import build
from tests.software_cuda.control import SoftCuda


@dataclass(frozen=True, slots=True)
class Loaded:
    """The driver, and the modules of the real pycuda by name."""

    driver: SoftCuda
    pycuda: Mapping[str, ModuleType]


@pytest.fixture(scope="session")
def loaded_soft_cuda() -> Loaded:
    """What a process can load only once."""
    try:
        built = build()
    except SetupError as reason:
        pytest.skip(str(reason))
    driver = SoftCuda(built.library)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(built.packages)
        importlib.import_module("pycuda.driver")
    names = [name for name in sys.modules if name.partition(".")[0] == "pycuda"]
    return Loaded(driver, {name: sys.modules.pop(name) for name in names})


@pytest.fixture
def soft_cuda(loaded_soft_cuda: Loaded, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftCuda]:
    """The driver as if just loaded, and pycuda importable. After the test nothing may be live, and no rule may have been broken.

    Release what the test made before it ends. Where a rule is broken on purpose: `soft_cuda.take_violations()`.
    """
    for name, module in loaded_soft_cuda.pycuda.items():
        monkeypatch.setitem(sys.modules, name, module)
    driver = loaded_soft_cuda.driver
    driver.reset()
    yield driver
    driver.let_streams_go()
    if driver.live():  # an exception that was caught keeps its frames, and what they made
        gc.collect()
    found = {"not freed": driver.live(), "violations": driver.violations()}
    driver.reset()
    assert found == {"not freed": [], "violations": []}, found


@pytest.fixture
def pycuda_module(soft_cuda: SoftCuda) -> Any:
    """The real `pycuda.driver`, not initialized."""
    return importlib.import_module("pycuda.driver")


@pytest.fixture
def pycuda_driver(pycuda_module: Any, soft_cuda: SoftCuda) -> Iterator[Any]:
    """The real `pycuda.driver` with the primary context current on the test's thread."""
    cuda = pycuda_module
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    yield cuda
    if len(soft_cuda.live()) > 1:  # more than the context
        gc.collect()
    context.pop()
    context.detach()


@pytest.fixture
def stand_in_tensorrt(soft_cuda: SoftCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in as the module `tensorrt`; how its kernels behave: `stand_in.behaviour()`."""
    module = stand_in.start(soft_cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    yield module
    stand_in.raise_kernel_errors()
