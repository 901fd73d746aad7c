"""Which GPU, driver, TensorRT and processor this is; one line of JSON. Fails where pycuda finds no GPU."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from build_engine.errors import Unavailable
from build_engine.flavour import find_flavour
from consumer.inference.device import Device

_ASKED = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit", "mig.mode.current", "pcie.link.gen.current")
_PACKAGES = ("numpy", "onnxruntime", "confluent-kafka", "fastavro", "redis", "pycuda")


def facts() -> dict[str, Any]:
    """Raises: Unavailable: there is no GPU that pycuda can use."""
    device = Device()
    try:
        free, total = device.cuda.mem_get_info()
        found = {
            "gpu": device.gpu.name,
            "compute_capability": device.gpu.compute_capability,
            "cuda_driver": device.cuda.get_driver_version(),
            "memory_free_mb": free >> 20,
            "memory_mb": total >> 20,
        }
    finally:
        device.close()
    return {
        **found,
        "nvidia_smi": _nvidia_smi(),
        "tensorrt": _tensorrt(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _nvidia_smi() -> dict[str, str]:
    """Empty where it does not answer."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return dict(zip(_ASKED, (each.strip() for each in said.splitlines()[0].split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}


def _tensorrt() -> str | None:
    try:
        found = find_flavour("auto")
    except Unavailable:
        return None
    return f"{found.name} {found.version}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(facts()))
