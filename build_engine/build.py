"""One engine from one graph: parse, profile, compile."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from build_engine import flavour as api
from build_engine.errors import Unavailable, UsageError
from build_engine.flavour import Flavour, Gpu, TensorRTError
from build_engine.precision import Precision

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
_BATCH_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Profile:
    """The batches an engine takes: smallest, the one it is tuned for, largest."""

    batch_min: int
    batch_opt: int
    batch_max: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch_min <= self.batch_opt <= self.batch_max <= _BATCH_MAX:
            raise UsageError(f"--batch: expected 1 <= MIN <= OPT <= MAX <= {_BATCH_MAX}, found {self}")

    def __str__(self) -> str:
        return f"{self.batch_min},{self.batch_opt},{self.batch_max}"

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Reads `MIN,OPT,MAX`.

        Raises:
            UsageError: it is not three numbers in that order.
        """
        if not re.fullmatch(r"\d{1,6},\d{1,6},\d{1,6}", text):
            raise UsageError(f"--batch: expected MIN,OPT,MAX, found {text!r}")
        return cls(*map(int, text.split(",")))


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile. All of it is part of the engine's fingerprint.

    Attributes:
        workspace_mib: what tactics may use while they run; None leaves the GPU's memory as the limit.
        optimization_level: 0 (fast build) to 5; 3 is TensorRT's default.
        hardware_compatibility: which other GPUs may load the engine (`tensorrt` only).
        version_compatible: later versions of the same major may load the engine (`tensorrt` only).
    """

    precision: Precision = "fp16"
    profile: Profile = Profile(1, 256, 1024)
    workspace_mib: int | None = None
    optimization_level: int = 3
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level: expected 0 to 5, found {self.optimization_level}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace-mib: expected 1 or more, found {self.workspace_mib}")


@dataclass(frozen=True, slots=True)
class Compiled:
    """The serialized engine, and the timing cache with what this build added; None where the flavour keeps none."""

    plan: bytes
    timing_cache: bytes | None


def target_of(flavour: Flavour, options: Options, *, compute_capability: str | None, gpu: Gpu | None) -> Gpu:
    """The GPU to build for.

    Raises:
        UsageError: the options do not go together.
        Unavailable: `tensorrt` builds only on the GPU, and there is none.
    """
    if flavour.name == "tensorrt_rtx":
        if options.hardware_compatibility != "none" or options.version_compatible:
            raise UsageError(
                "--hardware-compatibility, --version-compatible: tensorrt_rtx has its own; name a --compute-capability"
            )
        if compute_capability is not None:
            return Gpu(compute_capability, "any")
        if gpu is None:
            raise UsageError("--compute-capability: expected one, as there is no GPU here to take it from; for example 8.9")
        return Gpu(gpu.compute_capability, "any")
    if compute_capability is not None:
        raise UsageError(
            "--compute-capability: tensorrt builds for the GPU it runs on; leave it out or use --flavour tensorrt_rtx"
        )
    if gpu is None:
        raise Unavailable(
            "tensorrt builds on the GPU that runs the engine, and nvidia-smi shows none; --flavour tensorrt_rtx needs none"
        )
    return gpu


def compile_engine(flavour: Flavour, graph: bytes, options: Options, *, gpu: Gpu, timing_cache: bytes | None = None) -> Compiled:
    """Compiles a graph whose only varying dimension is the first, the batch.

    Args:
        graph: an ONNX model, serialized, as `precision.engine_graph` makes it.

    Raises:
        TensorRTError: with all that TensorRT logged.
        UsageError: this flavour and version lack what the options ask for.
    """
    lines: list[str] = []
    logger = api.collecting_logger(flavour, lines)
    try:
        builder = flavour.trt.Builder(logger)
        network = api.required(builder.create_network(api.network_flags(flavour)), "no network was made", lines)
        parser = flavour.trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise TensorRTError("the graph cannot be parsed", [*errors, *lines])
        config = _config(flavour, builder, network, options, gpu)
        timings = _timing_cache(flavour, config, timing_cache)
        plan = api.required(builder.build_serialized_network(network, config), "the engine was not built", lines)
        return Compiled(bytes(plan), None if timings is None else bytes(timings.serialize()))
    except (TypeError, RuntimeError, MemoryError) as error:  # what its C++ side throws; without a driver: TypeError
        raise TensorRTError(f"{flavour.name} {flavour.version}: {error}", lines) from error


def _config(flavour: Flavour, builder: Any, network: Any, options: Options, gpu: Gpu) -> Any:
    config = builder.create_builder_config()
    profile, sizes = builder.create_optimization_profile(), options.profile
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        if any(size < 1 for size in rest):
            raise UsageError(f"{tensor.name}: expected only the batch to vary, found the shape {tuple(tensor.shape)}")
        batches = (sizes.batch_min, sizes.batch_opt, sizes.batch_max)
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    config.add_optimization_profile(profile)
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(flavour.trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    # On by default, TF32 would round the fp32 parts to 11 bits: the very ones that are kept fp32 for their bits.
    api.choose_flag(flavour, config, "TF32", on=False)
    if options.version_compatible:
        api.choose_flag(flavour, config, "VERSION_COMPATIBLE", on=True)
    if options.hardware_compatibility != "none":
        api.choose_hardware(flavour, config, options.hardware_compatibility)
    api.choose_target(flavour, config, gpu.compute_capability)
    return config


def _timing_cache(flavour: Flavour, config: Any, former: bytes | None) -> Any | None:
    if flavour.name == "tensorrt_rtx":
        return None  # it compiles ahead of time without a GPU and times nothing
    timings = config.create_timing_cache(former or b"") or config.create_timing_cache(b"")
    return timings if config.set_timing_cache(timings, ignore_mismatch=False) else None
