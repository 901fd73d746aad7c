"""The GPU through pycuda, and the only file that imports it: the context, and lanes of streams, events and memory.

What is made here belongs to the thread that made it, because pycuda's stack of contexts does: an object that is freed elsewhere
leaks, and a thread that ends with a context pushed ends the process. So everything is freed by `close`, never by the collector.

Source: https://documen.tician.de/pycuda/driver.html; CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from build_engine.errors import Unavailable
from build_engine.flavour import Gpu
from consumer.inference import DeviceLost, InferenceFailed, OutOfMemory

log = structlog.get_logger(__name__)

Bytes = NDArray[np.uint8]


class Device:
    """The first GPU that CUDA sees, its primary context current on this thread until `close`.

    Attributes:
        gpu: its compute capability and name, as engines are filed by.
        errors: what the driver's calls raise, for `except`.

    Raises:
        Unavailable: pycuda is not installed, there is no driver or no GPU, or its context cannot be had.
    """

    def __init__(self) -> None:
        try:
            self.cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:  # pycuda is not installed, or it finds no libcuda.so.1
            raise Unavailable(f"pycuda cannot be imported: {error}") from error
        self.errors: tuple[type[Exception], ...] = (self.cuda.Error,)
        self._thread_id = threading.get_ident()
        self._context: Any = None
        self._pushed = False
        try:
            self.cuda.init()
            device = self.cuda.Device(0)
            self.gpu = Gpu("{}.{}".format(*device.compute_capability()), device.name())
            self._context = device.retain_primary_context()
            self._context.push()
            self._pushed = True
        except self.errors as error:
            self.close()
            raise Unavailable(f"the GPU cannot be used: {error}") from error

    def require_own_thread(self) -> None:
        """Raises: RuntimeError: the caller is not the thread that owns the context."""
        if (found := threading.get_ident()) != self._thread_id:
            raise RuntimeError(f"a GPU's context belongs to one thread: expected thread {self._thread_id}, found {found}")

    def translated(self, error: Exception) -> Exception:
        """What a failure means to the service, after all work on the GPU has come to rest.

        An error that stays, whatever is asked next, is the context's end, and no other of this process will be better; pycuda
        keeps no error codes, so the device is asked. Blocks until its work is done.

        Returns:
            DeviceLost, OutOfMemory or InferenceFailed, to be raised from `error`.
        """
        try:
            self.cuda.Context.synchronize()
        except self.errors as still:
            return DeviceLost(f"{self.gpu.name}: {error}; afterwards: {still}")
        # TensorRT has no type for it: a line that it logged, or the driver's, names it.
        memory = isinstance(error, MemoryError | self.cuda.MemoryError) or "OutOfMemory" in str(error)
        return (OutOfMemory if memory else InferenceFailed)(f"{self.gpu.name}: {error}")

    def close(self) -> None:
        """Gives the context back. Whatever the driver answers, nothing is held afterwards; may be called again."""
        context, self._context = self._context, None
        if context is None:
            return
        if self._pushed:
            self._pushed = False
            quietly(self.errors, context.pop)
        quietly(self.errors, context.detach)


class Lane:
    """A stream with pinned host memory and device memory for a batch's way: in, through the engine, and out.

    Attributes:
        host_in, host_out: pinned uint8 [bytes]; not to be touched after `close`.
        device_in, device_out: addresses of as many bytes.
        stream: its handle, for TensorRT.

    Raises:
        device.errors: something could not be had; nothing is held then.
    """

    def __init__(self, device: Device, *, bytes_in: int, bytes_out: int) -> None:
        self._device = device
        self._cuda: Any = device.cuda
        self._held: list[Any] = []  # what has a `free`
        # Streams and events have none: nothing but these names may hold them, or they would outlive the context.
        self._stream: Any = None
        self._begun: Any = None
        self._copied: Any = None
        self._computed: Any = None
        self._done: Any = None
        try:
            self._stream = self._cuda.Stream()
            self._begun, self._copied, self._computed = (self._cuda.Event() for _ in range(3))
            # Waited for asleep, not spinning: the core has features to make.
            self._done = self._cuda.Event(self._cuda.event_flags.BLOCKING_SYNC)
            self.host_in, self.host_out = self._pinned(bytes_in), self._pinned(bytes_out)
            self.device_in, self.device_out = self._allocated(bytes_in), self._allocated(bytes_out)
            self.stream = int(self._stream.handle)
        except BaseException:
            self.close()
            raise

    def _pinned(self, size: int) -> Bytes:
        array: Bytes = self._cuda.pagelocked_empty(size, np.uint8)
        self._held.append(array.base)
        return array

    def _allocated(self, size: int) -> int:
        self._held.append(self._cuda.mem_alloc(size))
        return int(self._held[-1])

    def copy_in(self, size: int) -> None:
        """Queues the copy of the first `size` bytes of `host_in` to `device_in`."""
        self._begun.record(self._stream)
        self._cuda.memcpy_htod_async(self.device_in, self.host_in[:size], self._stream)
        self._copied.record(self._stream)

    def copy_out(self, size: int) -> None:
        """Queues, after what was queued since `copy_in`, the copy of the first `size` bytes of `device_out` to `host_out`."""
        self._computed.record(self._stream)
        self._cuda.memcpy_dtoh_async(self.host_out[:size], self.device_out, self._stream)
        self._done.record(self._stream)

    def wait(self) -> NDArray[np.float64]:
        """Sleeps until `copy_out` is done; milliseconds of copy in, compute and copy out [3], taken on the stream."""
        self._done.synchronize()
        return np.array(
            [
                self._copied.time_since(self._begun),
                self._computed.time_since(self._copied),
                self._done.time_since(self._computed),
            ]
        )

    def synchronize(self) -> None:
        """Returns when the stream has nothing to do."""
        self._stream.synchronize()

    def close(self) -> None:
        """Frees everything, whatever the driver answers; the stream must have come to rest. May be called again."""
        while self._held:
            quietly(self._device.errors, self._held.pop().free)
        self._begun = self._copied = self._computed = self._done = self._stream = None


def quietly(errors: tuple[type[Exception], ...], call: Callable[[], object]) -> None:
    """Calls what must not stop a clean-up; a failure is said."""
    try:
        call()
    except errors as error:
        log.warning("gpu_not_freed", error=str(error))
