"""`tensorrt` 10.6 to 11 and `tensorrt_rtx`: one API but for what is in this file.

* `tensorrt` builds on the GPU that will run the engine; `tensorrt_rtx` on any machine, for a compute capability that is named.
* `STRONGLY_TYPED` is 1 in 10.x and 0 in 11, where networks are always strongly typed: only `1 << int(flag)` is right in both.
* Builder flags come and go between versions: one that is not there cannot be set, and cannot be wanted.
* Failures are `None` or a bare `TypeError`; the reason is only in the log, so every error carries what was logged.

Source: NVIDIA TensorRT API, https://docs.nvidia.com/deeplearning/tensorrt/; compared in the modules themselves.
"""

import importlib
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from build_engine.errors import EngineError, Unavailable, UsageError

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
# The metapackage that gives the plain name may be missing where only the bindings are installed.
_MODULES: dict[FlavourName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_LINES_MAX = 50
_NVIDIA_SMI_TIMEOUT_S = 20
_Made = TypeVar("_Made")


class TensorRTError(EngineError):
    """TensorRT refused or failed.

    Attributes:
        lines: what it logged of the severities warning and worse, oldest first.
    """

    def __init__(self, what: str, lines: list[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n  ".join([what, *(lines or ["TensorRT logged nothing"])]))


@dataclass(frozen=True, slots=True)
class Flavour:
    """An importable TensorRT. `trt` is the module: its names are looked up, for no stub fits all versions."""

    name: FlavourName
    version: str
    trt: Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine is for: the compute capability as "9.0", and the product's name or "any"."""

    compute_capability: str
    name: str


def find_flavour(wanted: Literal["auto", "tensorrt", "tensorrt_rtx"]) -> Flavour:
    """The module that is asked for; `auto` takes the first that can be imported, `tensorrt` before `tensorrt_rtx`.

    Raises:
        Unavailable: it is not installed, or its libraries cannot be loaded.
    """
    reasons = []
    for name in _MODULES if wanted == "auto" else (wanted,):
        for module in _MODULES[name]:
            try:
                trt = importlib.import_module(module)
                return Flavour(name, str(trt.__version__), trt)
            except (ImportError, OSError, AttributeError) as error:
                reasons.append(f"{module}: {error}")
    raise Unavailable("no TensorRT here; pip install tensorrt-cu13 or tensorrt-rtx-cu13; tried " + "; ".join(reasons))


def find_gpu() -> Gpu | None:
    """The GPU that CUDA calls device 0, or None: the first of CUDA_VISIBLE_DEVICES, which nvidia-smi does not read by itself."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    command = ["nvidia-smi", f"--id={visible}", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    if visible in {"", "-1"}:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.fullmatch(r"(\d+\.\d+), (\S.*)", answer.stdout.partition("\n")[0].strip())
    return Gpu(found[1], found[2]) if found else None


def collecting_logger(flavour: Flavour, lines: list[str]) -> Any:
    """A TensorRT logger that appends warnings and errors to `lines`; the builder must not outlive it."""
    base: Any = flavour.trt.ILogger
    severity = base.Severity
    told = {severity.INTERNAL_ERROR: "internal error", severity.ERROR: "error", severity.WARNING: "warning"}

    class Collector(base):  # type: ignore[misc]  # a base found at run time
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, message: str) -> None:
            if level in told and len(lines) < _LINES_MAX:  # an exception here would end the process
                lines.append(f"{told[level]}: {message}")

    return Collector()


def required(made: _Made | None, what: str, lines: list[str]) -> _Made:
    """What TensorRT returned, or its reasons for None.

    Raises:
        TensorRTError: it is None.
    """
    if made is None:
        raise TensorRTError(what, lines)
    return made


def network_flags(flavour: Flavour) -> int:
    """The flags of a strongly typed network."""
    return 1 << int(flavour.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def choose_flag(flavour: Flavour, config: Any, name: str, *, on: bool) -> None:
    """Sets or clears a builder flag.

    Raises:
        UsageError: it is wanted and this version has none of that name.
    """
    flag = getattr(flavour.trt.BuilderFlag, name, None)
    if flag is not None:
        (config.set_flag if on else config.clear_flag)(flag)
    elif on:
        raise UsageError(f"{flavour.name} {flavour.version} has no builder flag {name}")


def choose_hardware(flavour: Flavour, config: Any, level: str) -> None:
    """Sets the hardware compatibility level by its name in lower case.

    Raises:
        UsageError: this version does not know the level.
    """
    found = getattr(flavour.trt.HardwareCompatibilityLevel, level.upper(), None)
    if found is None:
        raise UsageError(f"{flavour.name} {flavour.version} has no hardware compatibility {level}")
    config.hardware_compatibility_level = found


def choose_target(flavour: Flavour, config: Any, compute_capability: str) -> None:
    """Tells `tensorrt_rtx` which GPUs to build for; `tensorrt` builds for the one it runs on and is told nothing.

    Raises:
        UsageError: this version cannot build for that compute capability.
    """
    if flavour.name == "tensorrt":
        return
    known = flavour.trt.ComputeCapability
    target = getattr(known, f"SM{compute_capability.replace('.', '')}", None)
    if target is None:
        names = sorted(name for name in known.__members__ if name.startswith("SM"))
        raise UsageError(
            f"--compute-capability: expected one of {', '.join(f'{name[2:-1]}.{name[-1]}' for name in names)} "
            f"for {flavour.name} {flavour.version}, found {compute_capability}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)
