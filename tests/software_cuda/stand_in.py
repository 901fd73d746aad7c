"""A stand-in for the runtime half of the `tensorrt` module, on the software CUDA driver: ONNX Runtime computes.

Put in `sys.modules["tensorrt"]` by the fixture `stand_in_tensorrt`. A plan is `make_plan(graph, profile)`. A pass is work of the
stream that it is given, on the memory behind device addresses, after a delay that a test sets. It behaves as TensorRT does where
that matters to a program: failures are None or False and say why only in the log; engine and execution context hold device
memory. It is stricter in one thing: a call needs a current CUDA context, where TensorRT would make one.

No figure from it is ever quoted as speed.

Source: NVIDIA TensorRT Python API 10, https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from tests.software_cuda.control import CudaError, SoftCuda

__version__ = "10.0.0+stand.in"

_MAGIC = b"software stand-in plan\n"
_WEIGHTS_BYTES, _ACTIVATIONS_BYTES = 4096, 8192  # what an engine and an execution context hold of the device's memory

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # by input: smallest, best and largest shape


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """To be subclassed with `log(severity, message)`."""

    Severity = Severity

    def log(self, severity: IntEnum, message: str) -> None:
        raise NotImplementedError("ILogger.log is pure virtual")


class Logger(ILogger):
    """Writes what is at least as severe to stderr."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: IntEnum, message: str) -> None:
        if severity <= self.min_severity:
            print(f"[stand-in TensorRT] {severity.name}: {message}", file=sys.stderr)


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


_ONNX_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int8)": (DataType.INT8, np.int8),
    "tensor(int32)": (DataType.INT32, np.int32),
    "tensor(bool)": (DataType.BOOL, np.bool_),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
    "tensor(int64)": (DataType.INT64, np.int64),
}


def nptype(trt_type: DataType) -> DTypeLike:
    """The numpy type of a TensorRT type."""
    return next(numpy_type for data_type, numpy_type in _ONNX_TYPES.values() if data_type is trt_type)


def make_plan(graph: bytes, profile: Profile) -> bytes:
    """What the stand-in deserializes: the ONNX graph with the shapes it takes."""
    return _MAGIC + json.dumps(dict(profile)).encode() + b"\n" + graph


@dataclass
class Behaviour:
    """How the kernels of a test behave.

    Attributes:
        delay_s: how long a pass takes before it computes.
        kernel_error: a pass does not compute but loses the device with this code, which later calls return.
        spoil: changes the outputs of a pass before they are written, e.g. to NaN.
    """

    delay_s: float = 0.0
    kernel_error: CudaError | None = None
    spoil: Callable[[dict[str, NDArray[Any]]], None] | None = None


@dataclass
class _State:
    cuda: SoftCuda | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    jobs: dict[int, Callable[[], None]] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)


_state = _State()
_job_numbers = count(1)


def start(cuda: SoftCuda) -> ModuleType:
    """Binds to the driver with a new `Behaviour`; returns this module, to stand for `tensorrt`."""
    _state.cuda, _state.behaviour = cuda, Behaviour()
    _state.jobs.clear()
    _state.errors.clear()
    return sys.modules[__name__]


def behaviour() -> Behaviour:
    """The settings of this test, to be changed in place."""
    return _state.behaviour


def raise_kernel_errors() -> None:
    """An exception in a kernel cannot reach anybody from a stream's thread: it is raised here, once."""
    if _state.errors:
        raise _state.errors.pop(0)


def _cuda() -> SoftCuda:
    assert _state.cuda is not None, "stand_in.start was not called"
    return _state.cuda


def _run_job(number: int) -> None:
    try:
        _state.jobs.pop(number)()
    except BaseException as error:  # noqa: BLE001  # ctypes would drop it
        _state.errors.append(error)
        _cuda().break_device(CudaError.LAUNCH_FAILED)


_RUN_JOB = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_run_job)


class _DeviceMemory:
    """Device memory that an engine or an execution context holds while it lives."""

    def __init__(self, size: int) -> None:
        self._resets = _cuda().resets
        self._pointer = ctypes.c_uint64()
        self.error = int(_cuda().library.cuMemAlloc_v2(ctypes.byref(self._pointer), ctypes.c_size_t(size)))

    def __del__(self) -> None:
        if self.error == 0 and self._resets == _cuda().resets:  # else a test that failed kept it, and the driver freed it
            _cuda().library.cuMemFree_v2(self._pointer)


def _shapes(smallest: list[int], best: list[int], largest: list[int]) -> tuple[Shape, Shape, Shape]:
    return tuple(smallest), tuple(best), tuple(largest)


class Runtime:
    """See `trt.Runtime`."""

    def __init__(self, logger: ILogger) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError(f"expected an ILogger, found {type(logger).__name__}")
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        """The engine, or None with the reason in the log."""
        plan = bytes(serialized_engine)
        if not plan.startswith(_MAGIC):
            self.logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magic tag does not match")
            return None
        try:
            head, _, graph = plan[len(_MAGIC) :].partition(b"\n")
            profile: Profile = {name: _shapes(*shapes) for name, shapes in json.loads(head).items()}
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # onnxruntime's have no base; all of them mean a plan that is no good
            self.logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 4: {error}")
            return None
        memory = _DeviceMemory(_WEIGHTS_BYTES)
        if memory.error:
            self.logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: CUDA error {memory.error} allocating weights")
            return None
        return ICudaEngine(self.logger, session, profile, memory)


class ICudaEngine:
    """See `trt.ICudaEngine`. It has one optimization profile."""

    num_optimization_profiles = 1

    def __init__(self, logger: ILogger, session: Any, profile: Profile, memory: _DeviceMemory) -> None:
        self._logger = logger
        self._session = session
        self._profile = profile
        self._memory = memory
        inputs = {each.name: (each, TensorIOMode.INPUT) for each in session.get_inputs()}
        outputs = {each.name: (each, TensorIOMode.OUTPUT) for each in session.get_outputs()}
        self._tensors: dict[str, tuple[Any, TensorIOMode]] = {**inputs, **outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name][1] if name in self._tensors else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return _ONNX_TYPES[self._tensors[name][0].type][0]

    def get_tensor_shape(self, name: str) -> Shape:
        """-1 for the batch, and for what neither the graph nor the profile fixes."""
        shape = [size if isinstance(size, int) else -1 for size in self._tensors[name][0].shape]
        if name in self._profile:
            smallest, _, largest = self._profile[name]
            for axis in range(1, len(shape)):
                shape[axis] = largest[axis] if smallest[axis] == largest[axis] else shape[axis]
        return tuple(shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        """The smallest, best and largest shape."""
        if profile_index != 0:
            raise IndexError(f"expected profile 0, found {profile_index}")
        return list(self._profile[name])

    def create_execution_context(self) -> "IExecutionContext | None":
        """A context that keeps the engine alive, or None with the reason in the log."""
        memory = _DeviceMemory(_ACTIVATIONS_BYTES)
        if memory.error:
            self._logger.log(Severity.ERROR, f"ICudaEngine::createExecutionContext: CUDA error {memory.error}")
            return None
        return IExecutionContext(self, memory)


class IExecutionContext:
    """See `trt.IExecutionContext`. The work that was launched does not need it any more."""

    def __init__(self, engine: ICudaEngine, memory: _DeviceMemory) -> None:
        self.engine = engine
        self._memory = memory
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}
        self.active_optimization_profile = 0

    def _refuse(self, what: str) -> bool:
        self.engine._logger.log(Severity.ERROR, f"IExecutionContext::{what}")
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """False: there is no such profile."""
        return profile_index == 0 or self._refuse(f"setOptimizationProfileAsync: there is no profile {profile_index}")

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """False: it is no input, or the shape is outside the profile."""
        found = tuple(map(int, shape))
        if self.engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
            return self._refuse(f"setInputShape: {name} is no input")
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        if len(found) != len(smallest) or not all(
            low <= size <= high for low, size, high in zip(smallest, found, largest, strict=True)
        ):
            return self._refuse(f"setInputShape: {name}: expected {smallest} to {largest}, found {found}")
        self._shapes[name] = found
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """False: the engine has no tensor of that name."""
        if self.engine.get_tensor_mode(name) is TensorIOMode.NONE:
            return self._refuse(f"setTensorAddress: there is no tensor {name}")
        self._addresses[name] = int(address)
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        """An input's as it was set; an output's with the batch of the inputs, or -1 while they are not set."""
        if self.engine.get_tensor_mode(name) is TensorIOMode.INPUT:
            return self._shapes.get(name, self.engine.get_tensor_shape(name))
        batches = {shape[0] for shape in self._shapes.values()} if not self._unset() else {-1}
        return tuple(min(batches) if size == -1 else size for size in self.engine.get_tensor_shape(name))

    def _unset(self) -> list[str]:
        """Inputs whose shape is not known."""
        inputs = [name for name in self.engine._tensors if self.engine.get_tensor_mode(name) is TensorIOMode.INPUT]
        return [name for name in inputs if name not in self._shapes and -1 in self.engine.get_tensor_shape(name)]

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Puts a pass on the stream. False: a shape or an address is not set, or CUDA refused; the log says."""
        if unset := self._unset():
            return self._refuse(f"enqueueV3: the shape of {unset[0]} is not set")
        if missing := [name for name in self.engine._tensors if not self._addresses.get(name)]:
            return self._refuse(f"enqueueV3: the address of {missing[0]} is not set")
        number = next(_job_numbers)
        shapes = {name: self.get_tensor_shape(name) for name in self.engine._tensors}
        _state.jobs[number] = _pass(self.engine, shapes, dict(self._addresses))
        code = int(_cuda().library.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), _RUN_JOB, ctypes.c_void_p(number)))
        if code != 0:
            del _state.jobs[number]
            return self._refuse(f"enqueueV3: CUDA error {code}")
        return True


def _pass(engine: ICudaEngine, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> Callable[[], None]:
    """The kernels of one pass: reads the inputs where they are when it runs, as a GPU would.

    It holds no part of the engine's memory: one that waits on a lost device never runs, and would keep it for ever.
    """
    session, types = engine._session, {name: np.dtype(nptype(engine.get_tensor_dtype(name))) for name in shapes}
    names = [name for name in shapes if engine.get_tensor_mode(name) is TensorIOMode.OUTPUT]

    def compute() -> None:
        current = _state.behaviour
        time.sleep(current.delay_s)
        if current.kernel_error is not None:
            _cuda().break_device(current.kernel_error)
            return
        tensors = {name: _on_device(types[name], shapes[name], addresses[name]) for name in shapes}
        if any(array is None for array in tensors.values()):
            return
        inputs = {name: array for name, array in tensors.items() if name not in names}
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        if current.spoil is not None:
            current.spoil(outputs)
        for name, value in outputs.items():
            assert value.shape == shapes[name], f"{name}: expected {shapes[name]}, computed {value.shape}"
            tensors[name][...] = value

    return compute


def _on_device(dtype: np.dtype[Any], shape: Shape, address: int) -> Any:
    """The tensor as an array over device memory; None is an illegal access, which lost the device."""
    size = int(np.prod(shape)) * dtype.itemsize
    found = _cuda().view(address, size)
    if found is None:
        return None
    memory: Any = (ctypes.c_char * size).from_address(found)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
