"""The software CUDA driver, asked through the real pycuda: what hardware does, and what it would not notice."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.software_cuda.build import build
from tests.software_cuda.control import CudaError, SoftCuda

FLOATS = 1000


def ramp() -> Any:
    return np.arange(FLOATS, dtype=np.float32)


def pinned(cuda: Any, values: Any) -> Any:
    buffer = cuda.pagelocked_empty(values.shape, values.dtype)
    buffer[:] = values
    return buffer


def on_stream(driver: SoftCuda, stream: Any, work: Callable[[], None]) -> Any:
    """Queues a host function; the caller keeps what is returned until it has run."""
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: work())
    assert driver.library.cuLaunchHostFunc(ctypes.c_void_p(stream.handle), function, None) == 0
    return function


def test_what_is_copied_to_the_device_comes_back(pycuda_driver: Any) -> None:
    memory = pycuda_driver.mem_alloc(4 * FLOATS)
    pycuda_driver.memcpy_htod(memory, ramp())
    other = pycuda_driver.mem_alloc(4 * FLOATS)
    pycuda_driver.memcpy_dtod(other, memory, 4 * FLOATS)
    result = np.zeros(FLOATS, np.float32)
    pycuda_driver.memcpy_dtoh(result, other)
    np.testing.assert_array_equal(result, ramp())


def test_fresh_memory_is_not_a_number(pycuda_driver: Any) -> None:
    memory = pycuda_driver.mem_alloc(4 * FLOATS)
    result = np.zeros(FLOATS, np.float32)
    pycuda_driver.memcpy_dtoh(result, memory)
    assert np.isnan(result).all()
    assert np.isnan(pycuda_driver.pagelocked_empty(FLOATS, np.float32)).all()


@pytest.mark.parametrize("offset", [0, 4])
def test_a_copy_that_leaves_its_allocation_is_refused_and_noted(pycuda_driver: Any, soft_cuda: SoftCuda, offset: int) -> None:
    memory = pycuda_driver.mem_alloc(4 * FLOATS - 4 + offset)
    neighbour = pycuda_driver.mem_alloc(4 * FLOATS)
    with pytest.raises(pycuda_driver.LogicError, match="cuMemcpyHtoD failed: invalid argument"):
        pycuda_driver.memcpy_htod(int(memory) + offset, ramp())
    (noted,) = soft_cuda.take_violations()
    assert "4000 bytes" in noted
    assert "not inside one device allocation" in noted
    neighbour.free()


def test_a_host_that_reads_a_device_address_faults(loaded_soft_cuda: SoftCuda) -> None:
    done = in_a_process("view = memory.as_buffer(4)\nview[0]")
    assert done.returncode == -signal.SIGSEGV


def test_what_is_not_freed_is_said_at_exit(loaded_soft_cuda: SoftCuda) -> None:
    keep = "for each in (memory, context):\n    ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))\ncontext.pop()"
    done = in_a_process(keep)
    assert done.returncode == 0
    assert "not freed at exit:\n400 bytes of device memory\nthe primary context" in done.stderr


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    """Runs it where `memory` is a device allocation of 400 bytes."""
    built = build()
    head = f"""
import ctypes, sys
ctypes.CDLL({str(built.library)!r}, ctypes.RTLD_GLOBAL)
sys.path.append({str(built.packages)!r})
import pycuda.driver as cuda
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
memory = cuda.mem_alloc(400)
"""
    return subprocess.run([sys.executable, "-c", head + script], capture_output=True, text=True, timeout=60)


def test_a_thread_without_a_context_is_refused(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    errors: list[str] = []

    def allocate() -> None:
        try:
            pycuda_driver.mem_alloc(4)
        except pycuda_driver.LogicError as error:
            errors.append(str(error))

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join(30)
    assert errors == ["cuMemAlloc failed: invalid device context"]
    assert soft_cuda.take_violations() == ["cuMemAlloc: the calling thread has no current context"]


def test_a_released_context_is_no_context(soft_cuda: SoftCuda) -> None:
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    context.pop()
    context.detach()  # pycuda pushes it for this and leaves it
    with pytest.raises(cuda.LogicError, match="context is destroyed"):
        cuda.mem_get_info()
    assert soft_cuda.take_violations() == ["cuMemGetInfo: the current context of the calling thread was released"]


def test_nothing_works_before_init(soft_cuda: SoftCuda) -> None:
    import pycuda.driver as cuda

    with pytest.raises(cuda.LogicError, match="cuDeviceGet failed: initialization error"):
        cuda.Device(0)


def test_a_copy_on_a_stream_is_not_done_before_somebody_waits(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    source, result = pinned(pycuda_driver, ramp()), pinned(pycuda_driver, ramp())
    memory = pycuda_driver.mem_alloc(source.nbytes)
    stream, done = pycuda_driver.Stream(), pycuda_driver.Event(pycuda_driver.event_flags.BLOCKING_SYNC)
    soft_cuda.hold_streams()
    pycuda_driver.memcpy_htod_async(memory, source, stream)
    pycuda_driver.memcpy_dtoh_async(result, memory, stream)
    done.record(stream)
    assert np.isnan(result).all()  # not what was there from last time either
    assert not done.query()
    assert not stream.is_done()
    soft_cuda.let_streams_go()
    done.synchronize()
    np.testing.assert_array_equal(result, ramp())
    assert done.query()
    stream.synchronize()
    assert stream.is_done()
    assert [span.name for span in soft_cuda.timeline()] == ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord"]


def test_an_idle_stream_starts_late(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    soft_cuda.start_streams_late(us=50_000)
    stream, start, end = pycuda_driver.Stream(), pycuda_driver.Event(), pycuda_driver.Event()
    start.record()  # on the default stream: at once
    end.record(stream)
    end.synchronize()
    assert end.time_since(start) >= 50
    assert soft_cuda.calls("cuEventSynchronize, spinning") == 1


def test_streams_run_beside_each_other(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    both = threading.Barrier(2, timeout=30)
    met: list[int] = []
    streams = [pycuda_driver.Stream(), pycuda_driver.Stream()]
    kept = [on_stream(soft_cuda, stream, lambda: met.append(both.wait())) for stream in streams]
    pycuda_driver.Context.synchronize()
    assert sorted(met) == [0, 1]
    first, second = soft_cuda.timeline()
    assert first.stream != second.stream
    assert first.overlaps(second)
    del kept


def test_a_stream_does_its_own_work_in_order(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    order: list[int] = []
    stream = pycuda_driver.Stream()
    kept = [on_stream(soft_cuda, stream, lambda number=number: order.append(number)) for number in range(20)]
    stream.synchronize()
    assert order == list(range(20))
    del kept


def test_a_stream_waits_for_the_event_of_another(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    go = threading.Event()
    order: list[str] = []
    first, second, between = pycuda_driver.Stream(), pycuda_driver.Stream(), pycuda_driver.Event()
    kept = [on_stream(soft_cuda, first, lambda: (go.wait(30), order.append("first")))]  # type: ignore[func-returns-value]
    between.record(first)
    second.wait_for_event(between)
    kept.append(on_stream(soft_cuda, second, lambda: order.append("second")))
    assert not second.is_done()
    go.set()
    second.synchronize()
    assert order == ["first", "second"]


def test_a_copy_on_the_default_stream_comes_after_the_work_of_streams(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    source = pinned(pycuda_driver, ramp())
    memory, stream = pycuda_driver.mem_alloc(source.nbytes), pycuda_driver.Stream()
    pycuda_driver.memcpy_htod_async(memory, source, stream)
    result = np.zeros(FLOATS, np.float32)
    pycuda_driver.memcpy_dtoh(result, memory)
    np.testing.assert_array_equal(result, ramp())


@pytest.mark.parametrize("direction", ["HtoD", "DtoH"])
def test_an_asynchronous_copy_of_memory_that_is_not_pinned_is_noted(
    pycuda_driver: Any, soft_cuda: SoftCuda, direction: str
) -> None:
    memory, stream, values = pycuda_driver.mem_alloc(4 * FLOATS), pycuda_driver.Stream(), ramp()
    if direction == "HtoD":
        pycuda_driver.memcpy_htod_async(memory, values, stream)
    else:
        pycuda_driver.memcpy_dtoh_async(values, memory, stream)
    expected = f"cuMemcpy{direction}Async: 4000 bytes of host memory are not pinned, so the copy is not asynchronous"
    assert soft_cuda.take_violations() == [expected]


def test_registered_memory_counts_as_pinned(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    """By the call itself: pycuda 2026.1's `register_host_memory` crashes."""
    values = ramp()
    address = ctypes.c_void_p(values.ctypes.data)
    assert soft_cuda.library.cuMemHostRegister_v2(address, ctypes.c_size_t(values.nbytes), 0) == 0
    memory, stream = pycuda_driver.mem_alloc(4 * FLOATS), pycuda_driver.Stream()
    pycuda_driver.memcpy_htod_async(memory, values, stream)
    stream.synchronize()
    assert soft_cuda.library.cuMemHostUnregister(address) == 0


def test_a_source_that_changes_before_it_was_copied_is_noted(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    source = pinned(pycuda_driver, ramp())
    memory, stream = pycuda_driver.mem_alloc(source.nbytes), pycuda_driver.Stream()
    soft_cuda.hold_streams()
    pycuda_driver.memcpy_htod_async(memory, source, stream)
    source[7] = 0
    soft_cuda.let_streams_go()
    stream.synchronize()
    assert soft_cuda.take_violations() == ["cuMemcpyHtoDAsync of 4000 bytes: the source was changed while the copy was queued"]


def test_memory_that_is_freed_under_queued_work_is_noted_and_loses_the_device(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    source = pinned(pycuda_driver, ramp())
    memory, stream = pycuda_driver.mem_alloc(source.nbytes), pycuda_driver.Stream()
    soft_cuda.hold_streams()
    pycuda_driver.memcpy_htod_async(memory, source, stream)
    memory.free()
    soft_cuda.let_streams_go()
    with pytest.raises(pycuda_driver.Error, match="illegal memory access"):
        stream.synchronize()
    assert soft_cuda.take_violations() == ["cuMemcpyHtoDAsync of 4000 bytes: the memory was freed while the work was queued"]


def test_a_fill_on_a_stream_fills(pycuda_driver: Any) -> None:
    memory, stream = pycuda_driver.mem_alloc(4 * FLOATS), pycuda_driver.Stream()
    pycuda_driver.memset_d32_async(memory, 0x3F800000, FLOATS, stream)
    pycuda_driver.memset_d8_async(memory, 0, 4, stream)
    stream.synchronize()
    result = np.empty(FLOATS, np.float32)
    pycuda_driver.memcpy_dtoh(result, memory)
    np.testing.assert_array_equal(result, [0.0] + [1.0] * (FLOATS - 1))


def test_memory_is_short_when_it_is_used_up(pycuda_driver: Any) -> None:
    free, total = pycuda_driver.mem_get_info()
    assert free == total
    with pytest.raises(pycuda_driver.MemoryError):
        pycuda_driver.mem_alloc(total + 1)


def test_what_is_not_freed_is_counted_and_noted_when_its_context_ends(soft_cuda: SoftCuda) -> None:
    library, handle, stream = soft_cuda.library, ctypes.c_uint64(), ctypes.c_void_p()
    assert library.cuInit(0) == 0
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(handle), 0) == 0
    assert library.cuCtxPushCurrent_v2(handle) == 0
    assert library.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(12)) == 0
    assert library.cuStreamCreate(ctypes.byref(stream), 0) == 0
    assert soft_cuda.live() == ["12 bytes of device memory", "stream 1", "the primary context, retained 1 times"]
    assert library.cuCtxPopCurrent_v2(None) == 0
    assert library.cuDevicePrimaryCtxRelease_v2(0) == 0
    (noted,) = soft_cuda.take_violations()
    assert "the context ends with objects that were not freed: 12 bytes of device memory;stream 1;" in noted
    assert soft_cuda.live() == []


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
def test_a_failure_that_is_ordered_comes_and_all_can_be_freed(soft_cuda: SoftCuda, call: str, code: CudaError) -> None:
    import pycuda.driver as cuda

    np.testing.assert_array_equal(a_pass(cuda), ramp())
    soft_cuda.fail(call, code)
    with pytest.raises(cuda.Error, match=f"{call} failed"):
        a_pass(cuda)
    assert soft_cuda.live() == []
    assert soft_cuda.violations() == []


@pytest.mark.parametrize("call", ["cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuDevicePrimaryCtxRelease"])
def test_a_clean_up_that_is_told_to_fail_says_so_and_cleans_up(
    soft_cuda: SoftCuda, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import pycuda.driver as cuda

    soft_cuda.fail(call, CudaError.UNKNOWN)
    np.testing.assert_array_equal(a_pass(cuda), ramp())
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
