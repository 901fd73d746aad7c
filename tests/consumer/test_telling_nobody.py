"""ONNX Runtime's wheels collect usage data for their maker, and keep an identifier of the machine: ours must not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["consumer.inference.onnx", "build_engine.runner", "model.evaluate"])
def test_nothing_is_collected_about_the_machine(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert list(tmp_path.rglob("*")) == []
