"""What our code asks of TensorRT is there in the real modules of three versions, as far as a machine without a GPU can tell."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build_engine.flavour import Flavour
from consumer.inference.device import Device
from consumer.inference.tensorrt import TensorRtBackend
from model.bundle import Bundle
from tests.consumer.inference.contract import Golden, some_rows
from tests.consumer.inference.test_tensorrt import a_plan
from tests.infrastructure.tensorrt import MODULE, TensorRT
from tests.infrastructure.tensorrt_rtx import fetch_tensorrt_rtx
from tests.tensorrt_contract.check import missing, overloads
from tests.tensorrt_contract.recorder import Use, record

ROOT = Path(__file__).resolve().parents[2]
GRAPH = ROOT / "model" / "bundles" / "books" / "model.onnx"


def in_python(arguments: list[str], *, path: Path, libraries: Path | None = None, given: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": f"{path}:{ROOT}", "LD_LIBRARY_PATH": str(libraries or "")}
    done = subprocess.run(
        [sys.executable, *arguments], input=given, capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


def looked_up(module: TensorRT, uses: list[Any]) -> dict[str, Any]:
    arguments = ["-m", "tests.tensorrt_contract.check", MODULE]
    out = in_python(arguments, path=module.packages, libraries=module.libraries, given=json.dumps(uses))
    answer: dict[str, Any] = json.loads(out)
    assert answer["version"].startswith(module.version)
    return answer


@pytest.fixture(scope="session")
def uses_of_building() -> list[Any]:
    uses: list[Any] = json.loads(in_python(["-m", "tests.tensorrt_contract.building", str(GRAPH)], path=fetch_tensorrt_rtx()))
    return uses


@pytest.mark.integration
def test_what_building_uses_is_in_the_real_module(tensorrt: TensorRT, uses_of_building: list[Any]) -> None:
    calls = {f"{use['owner']}.{use['name']}" for use in uses_of_building if use["form"] == "call"}
    assert calls > {"Builder.build_serialized_network", "OnnxParser.parse", "ITimingCache.serialize", "ParserError.desc"}
    assert looked_up(tensorrt, uses_of_building)["missing"] == []


@pytest.fixture
def uses_of_running(stand_in_tensorrt: ModuleType, shipped: Bundle, golden: Golden) -> list[Any]:
    """What the service's backend asks of TensorRT from an engine's loading to its end, on the stand-in."""
    uses: set[Use] = set()
    flavour = Flavour("tensorrt", "stand-in", record(stand_in_tensorrt, uses))
    backend = TensorRtBackend(Device(), a_plan(shipped), shipped.manifest, flavour)
    backend.infer(some_rows(golden[0], slice(0, 3)))
    backend.close()
    return [asdict(use) for use in uses]


@pytest.mark.integration
def test_what_running_uses_is_in_the_real_module(tensorrt: TensorRT, uses_of_running: list[Any]) -> None:
    calls = {f"{use['owner']}.{use['name']}" for use in uses_of_running if use["form"] == "call"}
    assert calls > {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_shape"}
    assert looked_up(tensorrt, uses_of_running)["missing"] == []


@pytest.mark.integration
def test_a_name_and_a_signature_that_are_not_there_are_found(tensorrt: TensorRT) -> None:
    wrong = [
        Use("Builder", "build_engine", "get"),  # TensorRT 8's
        Use("Builder", "create_network", "call", 3),
        Use("IBuilderConfig", "set_timing_cache", "call", 1, ("ignore_mismatches",)),
        Use("ICudaEngine", "num_io_tensors", "set"),
        Use("module", "ICudaMachine", "get"),
    ]
    lines = looked_up(tensorrt, [asdict(use) for use in wrong])["missing"]
    assert len(lines) == len(wrong)
    assert "Builder.create_network: no overload takes 3 arguments" in "\n".join(lines)


@pytest.mark.integration
def test_without_a_driver_a_build_fails_with_what_tensorrt_logged(tensorrt: TensorRT) -> None:
    script = """
from build_engine.build import Options, compile_engine
from build_engine.flavour import Gpu, TensorRTError, find_flavour
try:
    compile_engine(find_flavour("tensorrt"), b"", Options(), gpu=Gpu("9.0", "any"))
except TensorRTError as error:
    print(error)
"""
    if tensorrt.version == "10.6":  # it ends the process: nothing may touch it before a driver was seen
        with pytest.raises(AssertionError, match=r"(?s)^-6: .*CUDA initialization failure with error: 35"):
            in_python(["-c", script], path=tensorrt.packages, libraries=tensorrt.libraries)
        return
    said = in_python(["-c", script], path=tensorrt.packages, libraries=tensorrt.libraries)
    assert f"tensorrt {tensorrt.version}" in said
    assert "CUDA initialization failure with error: 35" in said


def _module() -> Any:
    module = ModuleType("of_a_test")

    class Config:
        level = 0

        def set_level(self, level: int, *, strict: bool = False) -> None:
            self.level = level

    class Builder:
        def __init__(self, config: Config) -> None:
            self.config = config

    module.__dict__.update(Config=Config, Builder=Builder)
    return module


def test_the_recorder_notes_what_is_read_set_and_called_and_hands_bare_objects_on() -> None:
    uses: set[Use] = set()
    trt = record(_module(), uses)
    config = trt.Config()
    config.level = 3
    config.set_level(config.level + 1, strict=True)
    assert trt.Builder(config).config.level == 4
    assert {use for use in uses if use.form != "get"} == {
        Use("Config", "__init__", "call"),
        Use("Config", "level", "set"),
        Use("Config", "set_level", "call", 1, ("strict",)),
        Use("Builder", "__init__", "call", 1),
    }
    assert Use("Builder", "config", "get") in uses


def test_a_signature_in_a_docstring_is_read_with_its_defaults_and_overloads() -> None:
    doc = """set_shape(*args, **kwargs)
Overloaded function.

1. set_shape(self: trt.P, name: str, shape: Tuple[int, int] = (1, 2)) -> bool

2. set_shape(self: trt.P, name: str, *, strict: Callable[[int], bool]) -> None
"""
    assert overloads(doc) == [[("name", False), ("shape", True)], [("name", False), ("strict", False)]]


@pytest.mark.parametrize(
    ("use", "fits"),
    [
        (Use("P", "f", "call", 1), True),
        (Use("P", "f", "call", 2), True),
        (Use("P", "f", "call", 3), False),
        (Use("P", "f", "call", 0), False),
        (Use("P", "f", "call", 0, ("a",)), True),
        (Use("P", "f", "call", 1, ("a",)), False),
        (Use("P", "f", "call", 1, ("c",)), False),
    ],
)
def test_a_call_fits_its_signature_or_not(use: Use, fits: bool) -> None:
    module = ModuleType("of_a_test")
    module.__dict__["P"] = type("P", (), {"f": type("f", (), {"__doc__": "f(self: P, a: int, b: int = 0) -> None"})()})
    assert (missing(module, [use]) == []) is fits
