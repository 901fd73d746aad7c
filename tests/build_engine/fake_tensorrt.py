"""A TensorRT module in memory, for the branches that the installed one does not take: other versions, and failures."""

from enum import Enum
from types import SimpleNamespace
from typing import Any

from build_engine.flavour import Flavour, FlavourName


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Logger:
    Severity = Severity


class Config:
    """Notes what was set."""

    def __init__(self, module: "FakeTensorRT") -> None:
        self.module = module
        self.flags: set[str] = set()
        self.targets: list[str] = []
        self.pools: dict[str, int] = {}
        self.hardware_compatibility_level = "NONE"
        self.builder_optimization_level = -1
        self.profiles: list[Any] = []
        self.set_flag = self.flags.add
        self.clear_flag = lambda flag: self.flags.discard(flag)
        self.add_optimization_profile = self.profiles.append

    def set_compute_capability(self, target: str, index: int) -> None:
        self.targets.insert(index, target)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else SimpleNamespace(serialize=lambda: content + b"+new")

    def set_timing_cache(self, timings: Any, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return not self.module.timings_are_foreign


class FakeTensorRT:
    """Attributes that start without an underscore are what a test looks at or breaks."""

    Builder = property(lambda self: lambda logger: self._builder(logger))
    OnnxParser = property(lambda self: lambda network, logger: self)
    ILogger = Logger
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    def __init__(self, *, strongly_typed: int = 1, flags: tuple[str, ...] = ("TF32", "VERSION_COMPATIBLE")) -> None:
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=strongly_typed)
        self.BuilderFlag = SimpleNamespace(**{flag: flag for flag in flags})
        self.HardwareCompatibilityLevel = SimpleNamespace(NONE="NONE", AMPERE_PLUS="AMPERE_PLUS")
        self.plan: bytes | None = b"plan"
        self.has_driver = True
        self.timings_are_foreign = False
        self.parse_errors: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {"token_ids": (-1, 320), "cover_present": (-1, 1)}
        self.network_flags = -1
        self.config = Config(self)
        self.config.flags.add("TF32")  # as in the real ones, on unless cleared
        self.profile_shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._logger: Any = None

    def _builder(self, logger: Any) -> Any:
        self._logger = logger
        if not self.has_driver:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        profile = SimpleNamespace(set_shape=lambda name, *shapes: self.profile_shapes.update({name: shapes}))
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=self._build,
        )

    def _network(self, flags: int) -> Any:
        self.network_flags = flags
        tensors = [SimpleNamespace(name=name, shape=shape) for name, shape in self.shapes.items()]
        return SimpleNamespace(num_inputs=len(tensors), get_input=tensors.__getitem__)

    def _build(self, network: Any, config: Any) -> bytes | None:
        if self.plan is None:
            self._logger.log(Severity.INFO, "tactics were timed")
            self._logger.log(Severity.ERROR, "Could not find any implementation for node MatMul_1")
        return self.plan

    def parse(self, graph: bytes) -> bool:
        return not self.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self.parse_errors)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self.parse_errors[index])


def flavour_of(module: FakeTensorRT, name: FlavourName = "tensorrt") -> Flavour:
    return Flavour(name, "10.6.0", module)
