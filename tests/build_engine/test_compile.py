"""The real `tensorrt_rtx` compiles what ships, on the CPU: a graph that TensorRT cannot compile fails here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.build_engine.conftest import SHIPPED

pytestmark = pytest.mark.integration
COMPILED_FOR = ("8.0", "8.6", "8.9", "12.0")


def build_engine(command: str, *options: str, packages: Path | None) -> subprocess.CompletedProcess[str]:
    return _run(["-m", "build_engine", command, "--bundle", str(SHIPPED), *options], packages)


def in_python(script: str, packages: Path) -> subprocess.CompletedProcess[str]:
    return _run(["-c", script], packages)


def _run(arguments: list[str], packages: Path | None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(packages or "")}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_shipped_graph_compiles_for_every_gpu_generation(tensorrt_rtx: Path, precision: str) -> None:
    script = f"""
from pathlib import Path
from build_engine.build import Options, compile_engine
from build_engine.flavour import Gpu, find_flavour
from build_engine.precision import engine_graph
graph = engine_graph(Path({str(SHIPPED / "model.onnx")!r}), precision={precision!r}, tokens=320).SerializeToString()
for capability in {COMPILED_FOR}:
    compiled = compile_engine(find_flavour("tensorrt_rtx"), graph, Options({precision!r}), gpu=Gpu(capability, "any"))
    print(capability, len(compiled.plan))
"""
    done = in_python(script, tensorrt_rtx)
    assert done.returncode == 0, done.stderr
    sizes = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    assert tuple(sizes) == COMPILED_FOR
    bundle = Bundle.load(SHIPPED)
    numbers = bundle.extractor().vocabulary.rows * bundle.manifest.settings["training"]["table_width"]
    rows_bytes = numbers * (2 if precision == "fp16" else 4)
    assert all(rows_bytes < size < rows_bytes * 1.4 for size in sizes.values()), sizes


def test_a_second_build_takes_the_engine_from_the_cache_and_the_list_shows_it(tensorrt_rtx: Path, tmp_path: Path) -> None:
    options = ("--cache", str(tmp_path), "--compute-capability", "8.9")
    first = build_engine("build", *options, packages=tensorrt_rtx)
    assert first.returncode == 0, first.stderr
    assert "the graph was verified on the CPU, the engine was not" in first.stderr
    details = Path(first.stdout.strip()).with_suffix(".json")
    written = details.stat().st_mtime_ns
    second = build_engine("build", *options, packages=tensorrt_rtx)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert details.stat().st_mtime_ns == written
    listed = json.loads(build_engine("list", "--cache", str(tmp_path), "--json", packages=None).stdout)
    assert [(each["for"], each["of this bundle"], each["verified"], each["problem"]) for each in listed] == [
        ("any 8.9", True, False, None)
    ]


def test_a_gpu_that_it_cannot_build_for_is_refused_with_those_it_can(tensorrt_rtx: Path, tmp_path: Path) -> None:
    done = build_engine("build", "--cache", str(tmp_path), "--compute-capability", "9.0", packages=tensorrt_rtx)
    assert done.returncode == 2
    assert "expected one of 12.0, 12.1, 7.5, 8.0, 8.6, 8.9" in done.stderr
    assert not list(tmp_path.glob("*.engine"))


def test_packed_rows_without_their_rewriting_fail_with_what_tensorrt_logged(tensorrt_rtx: Path) -> None:
    """The reason is the whole point of collecting the log: TensorRT itself returns None."""
    script = f"""
import onnx
from build_engine.build import Options, compile_engine
from build_engine.flavour import Gpu, find_flavour
from build_engine.precision import _fix_dimensions, _fold
model = onnx.load({str(SHIPPED / "model.onnx")!r})
_fold(model.graph)
_fix_dimensions(model.graph, 320)
compile_engine(find_flavour("tensorrt_rtx"), model.SerializeToString(), Options(), gpu=Gpu("8.9", "any"))
"""
    done = in_python(script, tensorrt_rtx)
    assert "TensorRTError: the graph cannot be parsed" in done.stderr
    assert "TensorRT does not support UINT8 types for intermediate tensors" in done.stderr


def test_without_the_packages_the_build_ends_with_what_to_install(tmp_path: Path) -> None:
    done = build_engine("build", "--flavour", "tensorrt_rtx", "--cache", str(tmp_path), packages=None)
    assert done.returncode == 3
    assert "pip install tensorrt-cu13" in done.stderr
