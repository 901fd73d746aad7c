"""What a step imports as `tensorrt` on the software CUDA driver: the stand-in's runtime, and a builder that compiles nothing.

SOFT_CUDA_LIBRARY names the driver, the same file that pycuda finds on LD_LIBRARY_PATH.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

from tests.software_cuda import stand_in
from tests.software_cuda.control import SoftCuda
from tests.software_cuda.stand_in import DataType, ILogger, Logger, Runtime, TensorIOMode, __version__, nptype

__all__ = ["DataType", "ILogger", "Logger", "Runtime", "TensorIOMode", "__version__", "nptype"]

stand_in.start(SoftCuda(Path(os.environ["SOFT_CUDA_LIBRARY"])))

NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
BuilderFlag = SimpleNamespace(TF32="TF32")


class Network:
    """The graph's inputs, -1 where a size is not fixed."""

    def __init__(self) -> None:
        self.graph = b""
        self._inputs: list[Any] = []

    def read(self, graph: bytes) -> None:
        self.graph = graph
        for each in onnx.load_from_string(graph).graph.input:
            sizes = each.type.tensor_type.shape.dim
            shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
            self._inputs.append(SimpleNamespace(name=each.name, shape=shape))

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]


class OnnxParser:
    """See `trt.OnnxParser`."""

    num_errors = 0

    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = network

    def parse(self, graph: bytes) -> bool:
        self._network.read(graph)
        return True


class OptimizationProfile:
    """See `trt.IOptimizationProfile`."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class BuilderConfig:
    """See `trt.IBuilderConfig`."""

    builder_optimization_level = 3

    def __init__(self) -> None:
        self.profile = OptimizationProfile()

    def add_optimization_profile(self, profile: OptimizationProfile) -> None:
        self.profile = profile

    def clear_flag(self, flag: str) -> None:
        """None is set here."""

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings of nothing")

    def set_timing_cache(self, timings: Any, *, ignore_mismatch: bool) -> bool:
        return True


class Builder:
    """See `trt.Builder`."""

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes:
        return stand_in.make_plan(network.graph, config.profile.shapes)
