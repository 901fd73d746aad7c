"""The software CUDA driver from Python: orders failures, looks at what happened."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_TEXT_BYTES = 1 << 16
_SPANS_MAX = 1 << 15


class CudaError(IntEnum):
    """The codes that tests order. After one of the last four the device is lost: all later calls return it."""

    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    NO_DEVICE = 100
    INVALID_CONTEXT = 201
    INVALID_HANDLE = 400
    UNKNOWN = 999
    ECC_UNCORRECTABLE = 214
    ILLEGAL_ADDRESS = 700
    LAUNCH_TIMEOUT = 702
    LAUNCH_FAILED = 719


class _Span(ctypes.Structure):
    _fields_ = (
        ("stream", ctypes.c_uint64),
        ("start_ns", ctypes.c_uint64),
        ("end_ns", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    )


@dataclass(frozen=True, slots=True)
class Span:
    """One operation that a stream did, `name` being the call that queued it. Times are of the monotonic clock."""

    stream: int
    name: str
    start_ns: int
    end_ns: int

    def overlaps(self, other: "Span") -> bool:
        """Whether both were under way at some moment."""
        return self.start_ns < other.end_ns and other.start_ns < self.end_ns


class SoftCuda:
    """The loaded driver. One a process: pycuda binds to it when it is imported.

    Attributes:
        library: for the calls of CUDA itself.
        resets: how often it was reset; what was made before the last one is gone.
    """

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        self.resets = 0
        size, text = ctypes.c_size_t, ctypes.c_char_p
        self._declare("soft_cuda_live", ctypes.c_int, text, size)
        self._declare("soft_cuda_violations", ctypes.c_int, text, size, ctypes.c_int)
        self._declare("soft_cuda_calls", ctypes.c_ulong, text)
        self._declare("soft_cuda_fail", ctypes.c_int, text, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_int)
        self._declare("soft_cuda_break", None, ctypes.c_int)
        self._declare("soft_cuda_reset", None)
        self._declare("soft_cuda_late", None, ctypes.c_uint)
        self._declare("soft_cuda_hold", None, ctypes.c_int)
        self._declare("soft_cuda_timeline", size, ctypes.POINTER(_Span), size)
        self._declare("soft_cuda_view", ctypes.c_void_p, ctypes.c_uint64, size)

    def _declare(self, name: str, result: type | None, *arguments: type) -> None:
        function = getattr(self.library, name)
        function.restype, function.argtypes = result, arguments

    def live(self) -> list[str]:
        """A line on each object that is not freed yet."""
        return self._lines(self.library.soft_cuda_live)

    def violations(self) -> list[str]:
        """A line on each rule that was broken."""
        return self._lines(lambda text, size: self.library.soft_cuda_violations(text, size, 0))

    def take_violations(self) -> list[str]:
        """The same, and forgets them: for a test that breaks a rule on purpose."""
        return self._lines(lambda text, size: self.library.soft_cuda_violations(text, size, 1))

    def calls(self, name: str) -> int:
        """How often a call was made since the reset; its name is without `_v2`. Beside them "cuEventSynchronize, spinning"."""
        return int(self.library.soft_cuda_calls(name.encode()))

    def fail(self, name: str, code: CudaError, *, nth: int = 1, times: int = 1) -> None:
        """The `nth` call of that name from now on and `times` - 1 after it return `code`.

        pycuda's `mem_alloc` tries twice where memory is short: `times=2`.
        """
        if not self.library.soft_cuda_fail(name.encode(), nth, times, code):
            raise ValueError("the driver has no room for another order")

    def break_device(self, code: CudaError) -> None:
        """Loses the device, as a kernel that goes wrong does; may be called from work on a stream."""
        self.library.soft_cuda_break(code)

    def reset(self) -> None:
        """Waits for all work, then frees and forgets everything."""
        self.resets += 1
        self.library.soft_cuda_reset()

    def start_streams_late(self, *, us: int) -> None:
        """How long an idle stream waits before it begins; 1,000 µs after a reset."""
        self.library.soft_cuda_late(us)

    def hold_streams(self) -> None:
        """No stream begins another operation before `let_streams_go`; waiting for one would wait for ever."""
        self.library.soft_cuda_hold(1)

    def let_streams_go(self) -> None:
        """Ends `hold_streams`."""
        self.library.soft_cuda_hold(0)

    def timeline(self) -> list[Span]:
        """What the streams did since the reset, in order of completion."""
        spans = (_Span * _SPANS_MAX)()
        count = self.library.soft_cuda_timeline(spans, _SPANS_MAX)
        return [Span(each.stream, each.name.decode(), each.start_ns, each.end_ns) for each in spans[:count]]

    def view(self, address: int, size: int) -> int | None:
        """Where the bytes behind a device address are for the host, as a kernel sees them; None is an illegal access."""
        found: int | None = self.library.soft_cuda_view(address, size)
        return found

    def _lines(self, read: Callable[[ctypes.Array[ctypes.c_char], int], int]) -> list[str]:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        read(text, _TEXT_BYTES)
        return text.value.decode().splitlines()
