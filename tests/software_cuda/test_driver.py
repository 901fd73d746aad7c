"""The software CUDA driver, asked through the real pycuda: what hardware does, and what it would not notice."""

import ctypes
import importlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.software_cuda.build import build
from tests.software_cuda.control import SoftCuda
from tests.software_cuda.fixtures import Loaded

pytestmark = pytest.mark.integration

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


def test_a_host_that_reads_a_device_address_faults(soft_cuda: SoftCuda) -> None:
    done = in_a_process("view = memory.as_buffer(4)\nview[0]")
    assert done.returncode == -signal.SIGSEGV


def test_what_is_not_freed_is_said_at_exit(soft_cuda: SoftCuda) -> None:
    keep = "for each in (memory, context):\n    ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))\ncontext.pop()"
    done = in_a_process(keep)
    assert done.returncode == 0
    assert "not freed at exit:\n400 bytes of device memory\nthe primary context" in done.stderr


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    """Runs it where `memory` is a device allocation of 400 bytes."""
    built = build()
    head = f"""
import ctypes, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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


def test_a_released_context_is_no_context(pycuda_module: Any, soft_cuda: SoftCuda) -> None:
    pycuda_module.init()
    context = pycuda_module.Device(0).retain_primary_context()
    context.push()
    context.pop()
    context.detach()  # pycuda pushes it for this and leaves it
    with pytest.raises(pycuda_module.LogicError, match="context is destroyed"):
        pycuda_module.mem_get_info()
    assert soft_cuda.take_violations() == ["cuMemGetInfo: the current context of the calling thread was released"]


def test_nothing_works_before_init(pycuda_module: Any) -> None:
    with pytest.raises(pycuda_module.LogicError, match="cuDeviceGet failed: initialization error"):
        pycuda_module.Device(0)


def test_a_copy_on_a_stream_is_not_done_before_somebody_waits(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    source, result = pinned(pycuda_driver, ramp()), pinned(pycuda_driver, ramp())
    memory = pycuda_driver.mem_alloc(source.nbytes)
    stream, done = pycuda_driver.Stream(), pycuda_driver.Event(pycuda_driver.event_flags.BLOCKING_SYNC)
    soft_cuda.start_streams_late(us=0)
    soft_cuda.hold_streams()
    pycuda_driver.memcpy_htod_async(memory, source, stream)
    pycuda_driver.memcpy_dtoh_async(result, memory, stream)
    done.record(stream)
    time.sleep(0.1)
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
    kept = [on_stream(soft_cuda, stream, partial(order.append, number)) for number in range(20)]
    stream.synchronize()
    assert order == list(range(20))
    del kept


def test_a_stream_waits_for_the_event_of_another(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    go = threading.Event()
    order: list[str] = []
    first, second, between = pycuda_driver.Stream(), pycuda_driver.Stream(), pycuda_driver.Event()
    kept = [on_stream(soft_cuda, first, lambda: order.append("first" if go.wait(30) else "late"))]
    between.record(first)
    second.wait_for_event(between)
    kept.append(on_stream(soft_cuda, second, lambda: order.append("second")))
    time.sleep(0.2)  # in which it would go ahead if it did not wait
    assert order == []
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


def test_an_event_on_the_default_stream_is_refused_while_others_have_work(pycuda_driver: Any, soft_cuda: SoftCuda) -> None:
    stream, event = pycuda_driver.Stream(), pycuda_driver.Event()
    soft_cuda.hold_streams()
    pycuda_driver.Event().record(stream)
    with pytest.raises(pycuda_driver.LogicError, match="operation not supported"):
        event.record()
    soft_cuda.let_streams_go()
    stream.synchronize()
    event.record().synchronize()
    assert len(soft_cuda.take_violations()) == 1


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


def test_a_call_that_the_driver_has_not_says_so(pycuda_driver: Any) -> None:
    with pytest.raises(pycuda_driver.LogicError, match="cuMemAllocPitch failed: operation not supported"):
        pycuda_driver.mem_alloc_pitch(4, 4, 4)


def test_pycuda_is_not_there_for_other_tests(loaded_soft_cuda: Loaded) -> None:
    assert "pycuda.driver" in loaded_soft_cuda.pycuda
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pycuda.driver")
