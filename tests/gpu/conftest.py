"""A machine whose GPU is the software CUDA driver: what its processes find on their paths."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.infrastructure.commands import SetupError
from tests.software_cuda.build import build

SOFTWARE = Path(__file__).parent / "software_machine"


@pytest.fixture(scope="session")
def software_machine(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An environment: the driver, the real pycuda on it, a stand-in for TensorRT, and an nvidia-smi that names the device."""
    try:
        built = build()
    except SetupError as reason:
        pytest.skip(str(reason))
    smi = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "8.9, software CUDA device 0"\n')
    smi.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{smi.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{SOFTWARE}:{built.packages}",
        "LD_LIBRARY_PATH": str(built.library.parent),
        "SOFT_CUDA_LIBRARY": str(built.library),
    }
