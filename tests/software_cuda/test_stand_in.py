"""The stand-in for TensorRT's runtime fails and computes as the real one where that matters to a program."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from model.bundle import Bundle
from tests.software_cuda import stand_in
from tests.software_cuda.control import CudaError, SoftCuda
from tests.software_cuda.stand_in import Profile, make_plan

pytestmark = pytest.mark.integration

SHIPPED = Path(__file__).resolve().parents[2] / "model" / "bundles" / "books"


@pytest.fixture(scope="module")
def golden() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The shipped bundle's inputs, and the outputs that they gave when it was made."""
    inputs, outputs = Bundle.load(SHIPPED).golden()
    return inputs.as_feed(), outputs


@pytest.fixture(scope="module")
def plan(golden: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bytes:
    """The shipped graph for batches of 1 to 64."""
    return make_plan((SHIPPED / "model.onnx").read_bytes(), profile_of(golden[0]))


def profile_of(inputs: Mapping[str, Any]) -> Profile:
    shapes = {name: array.shape[1:] for name, array in inputs.items()}
    return {name: ((1, *shape), (32, *shape), (64, *shape)) for name, shape in shapes.items()}


class Collector(stand_in.ILogger):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, severity: IntEnum, message: str) -> None:
        self.lines.append(f"{severity.name}: {message}")


class Device:
    """An engine with one execution context, its tensors in pinned and device memory, and a stream."""

    def __init__(self, cuda: Any, trt: ModuleType, plan: bytes, rows: int) -> None:
        self.cuda, self.logger = cuda, Collector()
        self.engine = trt.Runtime(self.logger).deserialize_cuda_engine(plan)
        assert self.engine is not None, self.logger.lines
        self.context = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) is trt.TensorIOMode.INPUT]
        self.host, self.memory = {}, {}
        for name in names:
            shape = (rows, *self.engine.get_tensor_shape(name)[1:])
            self.host[name] = cuda.pagelocked_empty(shape, trt.nptype(self.engine.get_tensor_dtype(name)))
            self.memory[name] = cuda.mem_alloc(self.host[name].nbytes)

    def prepare(self) -> None:
        """Shapes and addresses of all tensors."""
        for name, memory in self.memory.items():
            if name in self.inputs:
                assert self.context.set_input_shape(name, self.host[name].shape)
            assert self.context.set_tensor_address(name, int(memory))

    def submit(self, inputs: Mapping[str, Any]) -> bool:
        for name in self.inputs:
            self.host[name][:] = inputs[name]
            self.cuda.memcpy_htod_async(self.memory[name], self.host[name], self.stream)
        done: bool = self.context.execute_async_v3(self.stream.handle)
        for name in self.memory.keys() - set(self.inputs):
            self.cuda.memcpy_dtoh_async(self.host[name], self.memory[name], self.stream)
        return done

    def close(self) -> None:
        with contextlib.suppress(self.cuda.Error):
            self.stream.synchronize()
        self.__dict__.clear()


@pytest.fixture
def device(pycuda_driver: Any, stand_in_tensorrt: ModuleType, plan: bytes) -> Iterator[Device]:
    """For 8 rows."""
    made = Device(pycuda_driver, stand_in_tensorrt, plan, rows=8)
    yield made
    made.close()


def first_rows(arrays: Mapping[str, Any], rows: int = 8) -> dict[str, Any]:
    return {name: array[:rows] for name, array in arrays.items()}


def test_it_computes_the_golden_outputs_on_device_memory(
    device: Device, golden: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    device.prepare()
    assert device.submit(first_rows(golden[0]))
    device.stream.synchronize()
    for name, expected in first_rows(golden[1]).items():
        np.testing.assert_allclose(device.host[name], expected, rtol=1e-3, atol=1e-4)


def test_the_engine_says_its_tensors_and_its_profile(
    device: Device, stand_in_tensorrt: ModuleType, golden: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    tokens = golden[0]["token_ids"].shape[1]
    engine = device.engine
    assert set(device.inputs) == set(golden[0])
    assert set(device.memory) - set(device.inputs) == set(golden[1])
    assert engine.get_tensor_dtype("token_ids") is stand_in_tensorrt.DataType.INT32
    assert engine.get_tensor_dtype("cover") is stand_in_tensorrt.DataType.UINT8
    assert engine.get_tensor_shape("token_ids") == (-1, tokens)
    assert engine.get_tensor_profile_shape("token_ids", 0) == [(1, tokens), (32, tokens), (64, tokens)]
    assert device.context.get_tensor_shape("embedding")[0] == -1
    device.prepare()
    assert device.context.get_tensor_shape("embedding") == (8, golden[1]["embedding"].shape[1])


def test_two_contexts_compute_at_the_same_time_on_two_streams(
    pycuda_driver: Any,
    stand_in_tensorrt: ModuleType,
    soft_cuda: SoftCuda,
    plan: bytes,
    golden: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    devices = [Device(pycuda_driver, stand_in_tensorrt, plan, rows=8) for _ in range(2)]
    stand_in.behaviour().delay_s = 0.5
    for each in devices:
        each.prepare()
    soft_cuda.hold_streams()
    for each in devices:
        assert each.submit(first_rows(golden[0]))
    soft_cuda.let_streams_go()
    pycuda_driver.Context.synchronize()
    first, second = (span for span in soft_cuda.timeline() if span.name == "cuLaunchHostFunc")
    assert first.overlaps(second)
    assert first.end_ns - first.start_ns >= 500_000_000
    for each in devices:
        each.close()


def test_junk_is_no_engine_and_the_log_says_why(pycuda_driver: Any, stand_in_tensorrt: ModuleType, plan: bytes) -> None:
    for junk, reason in ((b"junk", "magic tag does not match"), (plan[: len(plan) // 2], "Error Code 4")):
        logger = Collector()
        assert stand_in_tensorrt.Runtime(logger).deserialize_cuda_engine(junk) is None
        assert reason in logger.lines[0]


def test_what_is_no_logger_is_refused(stand_in_tensorrt: ModuleType) -> None:
    with pytest.raises(TypeError, match="expected an ILogger, found str"):
        stand_in_tensorrt.Runtime("logger")


def test_short_memory_shows_as_none(pycuda_driver: Any, stand_in_tensorrt: ModuleType, soft_cuda: SoftCuda, plan: bytes) -> None:
    logger = Collector()
    runtime = stand_in_tensorrt.Runtime(logger)
    soft_cuda.fail("cuMemAlloc", CudaError.OUT_OF_MEMORY)
    assert runtime.deserialize_cuda_engine(plan) is None
    soft_cuda.fail("cuMemAlloc", CudaError.OUT_OF_MEMORY, nth=2)
    assert runtime.deserialize_cuda_engine(plan).create_execution_context() is None
    assert [line.partition("::")[0] for line in logger.lines] == ["ERROR: IRuntime", "ERROR: ICudaEngine"]


def test_a_pass_without_a_shape_or_an_address_is_refused(device: Device) -> None:
    stream = device.stream.handle
    assert not device.context.execute_async_v3(stream)
    device.prepare()
    assert device.context.set_tensor_address("embedding", 0)
    assert not device.context.execute_async_v3(stream)
    assert not device.context.set_input_shape("token_ids", (65, *device.host["token_ids"].shape[1:]))
    assert not device.context.set_input_shape("embedding", (8, 96))
    assert not device.context.set_tensor_address("nothing", 1)
    assert not device.context.set_optimization_profile_async(1, stream)
    assert device.context.set_optimization_profile_async(0, stream)
    assert [line.partition(": ")[2].partition(",")[0] for line in device.logger.lines] == [
        "IExecutionContext::enqueueV3: the shape of token_ids is not set",
        "IExecutionContext::enqueueV3: the address of embedding is not set",
        "IExecutionContext::setInputShape: token_ids: expected (1",
        "IExecutionContext::setInputShape: embedding is no input",
        "IExecutionContext::setTensorAddress: there is no tensor nothing",
        "IExecutionContext::setOptimizationProfileAsync: there is no profile 1",
    ]


def test_another_thread_cannot_launch(device: Device, soft_cuda: SoftCuda) -> None:
    device.prepare()
    launched: list[bool] = []
    thread = threading.Thread(target=lambda: launched.append(device.context.execute_async_v3(device.stream.handle)))
    thread.start()
    thread.join(30)
    assert launched == [False]
    assert device.logger.lines == ["ERROR: IExecutionContext::enqueueV3: CUDA error 201"]
    assert soft_cuda.take_violations() == ["cuLaunchHostFunc: the calling thread has no current context"]


def test_a_kernel_that_goes_wrong_loses_the_device_later(
    device: Device, golden: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    stand_in.behaviour().kernel_error = CudaError.ILLEGAL_ADDRESS
    device.prepare()
    assert device.context.execute_async_v3(device.stream.handle)
    with pytest.raises(device.cuda.Error, match="cuStreamSynchronize failed: an illegal memory access"):
        device.stream.synchronize()


def test_a_buffer_that_is_too_small_loses_the_device_and_is_noted(
    device: Device, soft_cuda: SoftCuda, golden: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    device.prepare()
    small = device.cuda.mem_alloc(4)
    assert device.context.set_tensor_address("embedding", int(small))
    assert device.context.execute_async_v3(device.stream.handle)
    with pytest.raises(device.cuda.Error, match="illegal memory access"):
        device.stream.synchronize()
    (noted,) = soft_cuda.take_violations()
    assert "a kernel used 3072 bytes" in noted


def test_outputs_can_be_spoiled(device: Device, golden: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    stand_in.behaviour().spoil = lambda outputs: outputs["embedding"].fill(np.inf)
    device.prepare()
    assert device.submit(first_rows(golden[0]))
    device.stream.synchronize()
    assert np.isinf(device.host["embedding"]).all()
    assert np.isfinite(device.host["department"]).all()


def test_an_error_in_a_kernel_of_the_stand_in_is_not_lost(device: Device) -> None:
    def fails(outputs: dict[str, Any]) -> None:
        raise ZeroDivisionError

    stand_in.behaviour().spoil = fails
    device.prepare()
    assert device.context.execute_async_v3(device.stream.handle)
    with pytest.raises(device.cuda.Error, match="unspecified launch failure"):
        device.stream.synchronize()
    with pytest.raises(ZeroDivisionError):
        stand_in.raise_kernel_errors()
