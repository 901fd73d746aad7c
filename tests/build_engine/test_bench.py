"""Measuring: rows a second and latency by batch; without a GPU it says so."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from build_engine import __main__ as commands
from build_engine import job
from build_engine.bench import as_document, batches_up_to, bench
from build_engine.errors import Unavailable
from build_engine.runner import OnnxRuntimeRunner, open_engine
from build_engine.verify import Rows
from model.bundle import Bundle
from tests.build_engine.conftest import SHIPPED


class SleepingRunner:
    """A pass takes 2 ms a row."""

    def __init__(self) -> None:
        self.parts_ms: Mapping[str, float] = {}

    def infer(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
        batch = len(inputs["token_ids"])
        time.sleep(0.002 * batch)
        self.parts_ms = {"host_to_device": 0.5 * batch, "compute": 1.0 * batch, "device_to_host": 0.25 * batch}
        return {}

    def close(self) -> None:
        """Nothing is held."""


def test_rows_a_second_and_latency_are_those_of_the_passes(rows: Rows) -> None:
    one, four = bench({"sleeping": SleepingRunner()}, rows, (1, 4), seconds=0.1)
    assert (one.batch, four.batch) == (1, 4)
    assert 2.0 <= one.p50_ms <= one.p99_ms
    assert 8.0 <= four.p50_ms <= four.p99_ms
    assert one.rows_per_s <= 500
    assert four.rows_per_s == pytest.approx(4 * four.passes / (four.passes * four.p50_ms / 1000), rel=0.5)


def test_copies_and_compute_are_told_apart_where_the_runner_knows_them(rows: Rows) -> None:
    (found,) = bench({"sleeping": SleepingRunner()}, rows, (4,), seconds=0.02)
    assert found.parts_ms == {"host_to_device": 2.0, "compute": 4.0, "device_to_host": 1.0}


def test_onnx_runtime_is_measured_on_the_bundles_own_graph(shipped: Bundle, rows: Rows) -> None:
    runner = OnnxRuntimeRunner(shipped.graph_path.read_bytes())
    document = as_document(bench({"onnxruntime, CPU": runner}, rows, (3,), seconds=0.01))[0]
    assert (document["runner"], document["batch"], document["parts_ms"]) == ("onnxruntime, CPU", 3, {})
    assert document["rows_per_s"] > 0


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (6, (1, 2, 4, 6))])
def test_batches_double_up_to_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert batches_up_to(largest) == sizes


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_without_a_gpu_the_command_says_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "find_gpu", lambda: None)
    result = CliRunner().invoke(commands.app, [command, "--bundle", str(SHIPPED)])
    assert isinstance(result.exception, Unavailable)
    assert result.exception.exit_code == 3
    assert "nvidia-smi shows none" in str(result.exception)


def test_an_engine_is_not_opened_without_a_gpu(shipped: Bundle) -> None:
    with pytest.raises(Unavailable, match="only on a GPU"):
        open_engine(b"plan", shipped.manifest, flavour="tensorrt", gpu=None)
