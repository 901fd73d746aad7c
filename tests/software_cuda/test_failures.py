"""Failures that a test orders from the software CUDA driver reach a program through the real pycuda, and all can be freed."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.software_cuda.control import CudaError, SoftCuda
from tests.software_cuda.test_driver import FLOATS, pinned, ramp

pytestmark = pytest.mark.integration


def a_pass(cuda: Any) -> Any:
    """Everything that a backend asks of the driver, once; frees it in the end, whatever happens."""
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    try:
        context.push()
        try:
            return a_pass_in_context(cuda)
        finally:
            context.pop()
    finally:
        context.detach()


def a_pass_in_context(cuda: Any) -> Any:
    """Streams and events go with their last reference, and an exception keeps its frames: they are held by `own` alone."""
    own, free = SimpleNamespace(), list[Callable[[], None]]()
    try:
        own.source, own.result = pinned(cuda, ramp()), cuda.pagelocked_empty(FLOATS, np.float32)
        free += [own.source.base.free, own.result.base.free]
        own.memory = cuda.mem_alloc(4 * FLOATS)
        free.append(own.memory.free)
        own.stream, own.start, own.end = cuda.Stream(), cuda.Event(), cuda.Event(cuda.event_flags.BLOCKING_SYNC)
        free.insert(0, own.stream.synchronize)
        own.start.record(own.stream)
        cuda.memcpy_htod_async(own.memory, own.source, own.stream)
        own.stream.wait_for_event(own.start)
        cuda.memcpy_dtoh_async(own.result, own.memory, own.stream)
        own.end.record(own.stream)
        own.end.synchronize()
        own.stream.synchronize()
        own.end.time_since(own.start)
        return own.result.copy()
    finally:
        while free:
            with contextlib.suppress(cuda.Error):
                free.pop(0)()
        own.__dict__.clear()


CALLS = [
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuMemHostAlloc",
    "cuMemAlloc",
    "cuStreamCreate",
    "cuEventCreate",
    "cuEventRecord",
    "cuMemcpyHtoDAsync",
    "cuStreamWaitEvent",
    "cuMemcpyDtoHAsync",
    "cuEventSynchronize",
    "cuStreamSynchronize",
    "cuEventElapsedTime",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [CudaError.UNKNOWN, CudaError.ILLEGAL_ADDRESS], ids=["unknown", "lost"])
def test_a_failure_that_is_ordered_comes_and_all_can_be_freed(
    pycuda_module: Any, soft_cuda: SoftCuda, call: str, code: CudaError
) -> None:
    np.testing.assert_array_equal(a_pass(pycuda_module), ramp())
    soft_cuda.fail(call, code)
    with pytest.raises(pycuda_module.Error, match=f"{call} failed"):
        a_pass(pycuda_module)
    assert soft_cuda.live() == []
    assert soft_cuda.violations() == []


@pytest.mark.parametrize("call", ["cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuDevicePrimaryCtxRelease"])
def test_a_clean_up_that_is_told_to_fail_says_so_and_cleans_up(
    pycuda_module: Any, soft_cuda: SoftCuda, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    soft_cuda.fail(call, CudaError.UNKNOWN)
    np.testing.assert_array_equal(a_pass(pycuda_module), ramp())
    assert f"{call} failed: unknown error" in capfd.readouterr().err


def test_memory_that_is_short_twice_is_short_for_pycuda(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    soft_cuda.fail("cuMemAlloc", CudaError.OUT_OF_MEMORY)
    pycuda_driver.mem_alloc(4).free()  # it tries twice
    soft_cuda.fail("cuMemAlloc", CudaError.OUT_OF_MEMORY, nth=2, times=2)
    pycuda_driver.mem_alloc(4).free()
    with pytest.raises(pycuda_driver.MemoryError):
        pycuda_driver.mem_alloc(4)


def test_a_lost_device_stays_lost(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    soft_cuda.break_device(CudaError.ECC_UNCORRECTABLE)
    for _ in range(2):
        with pytest.raises(pycuda_driver.Error, match="uncorrectable ECC error"):
            pycuda_driver.mem_alloc(4)
