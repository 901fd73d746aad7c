"""`verify` and `bench` on an engine that runs: the service's backend on the software CUDA driver, under a stand-in for TensorRT.

Its engine computes what the bundle's engine graph computes. Its speed is nobody's.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from build_engine import __main__ as commands
from build_engine import job as jobs
from build_engine.build import Options, Profile
from build_engine.cache import Built
from build_engine.errors import NotVerified
from build_engine.flavour import Gpu
from build_engine.job import Job
from consumer.inference.device import Device
from model.bundle import Bundle
from tests.build_engine.cache_processes import a_cache
from tests.build_engine.conftest import SHIPPED
from tests.software_cuda import stand_in
from tests.software_cuda.control import SoftCuda
from tests.software_cuda.fixtures import loaded_soft_cuda, soft_cuda, stand_in_tensorrt

pytestmark = pytest.mark.integration

__all__ = ["loaded_soft_cuda", "soft_cuda", "stand_in_tensorrt"]

PROFILE = Profile(1, 64, 128)


@pytest.fixture
def job(shipped: Bundle, soft_cuda: SoftCuda, stand_in_tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A build for the software GPU, which no nvidia-smi knows."""
    device = Device()
    device.close()
    for module in (jobs, commands):
        monkeypatch.setattr(module, "find_gpu", lambda: device.gpu)
    return Job.prepare(shipped, Options(profile=PROFILE), flavour="tensorrt", compute_capability=None)


def a_plan(job: Job) -> bytes:
    """The graph that would be compiled, with the profile that it would be compiled for."""
    tokens, sizes = job.bundle.manifest.features.tokens_max, (PROFILE.batch_min, PROFILE.batch_opt, PROFILE.batch_max)
    profile = {
        spec.name: tuple((size, *(tokens if each == "tokens" else int(each) for each in spec.shape[1:])) for size in sizes)
        for spec in job.bundle.manifest.inputs
    }
    return stand_in.make_plan(job.graph, profile)  # type: ignore[arg-type]


@pytest.fixture
def cached(job: Job, tmp_path: Path) -> Path:
    a_cache(tmp_path).get_or_build(job.fingerprint, lambda: Built(a_plan(job), verified=False)).close()
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(commands.app, [*arguments, "--bundle", str(SHIPPED), "--flavour", "tensorrt", "--json"])


def test_verify_runs_the_engine_on_every_row(cached: Path) -> None:
    done = run("verify", "--cache", str(cached))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["passed"], report["rows"]) == (True, 2048)


def test_an_engine_that_answers_otherwise_is_not_verified(job: Job) -> None:
    def spoil(outputs: dict[str, Any]) -> None:
        outputs["genre"][:] = outputs["genre"][:, ::-1]

    stand_in.behaviour().spoil = spoil
    with pytest.raises(NotVerified, match="genre: agreement"):
        job.verified(a_plan(job)).require()


def test_an_engine_that_was_just_built_is_verified_on_its_gpu(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_compiled", lambda self, timings: jobs.Compiled(a_plan(self), None))
    assert job.can_verify
    assert job.build(tmp_path / "timings", print).verified
    assert not replace(job, gpu=Gpu("9.0", "another")).can_verify


def test_bench_times_the_parts_and_says_what_it_does_not_measure(cached: Path) -> None:
    """pycuda has no calls for CUDA graphs: `bench` says so and measures the rest."""
    done = run("bench", "--cache", str(cached), "--seconds", "0.01")
    assert done.exit_code == 0, done.output
    assert "not measured: engine, CUDA graphs: CUDA graphs: pycuda has no calls for them" in done.stderr
    measured = json.loads(done.stdout)
    assert {each["runner"] for each in measured} == {"engine", "onnxruntime, CPU"}
    engine = [each for each in measured if each["runner"] == "engine"]
    assert [each["batch"] for each in engine] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert all(set(each["parts_ms"]) == {"host_to_device", "compute", "device_to_host"} for each in engine)
