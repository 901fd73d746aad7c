"""From bundle to cache: nothing is published that was compared and is not the bundle's model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engine import job as jobs
from build_engine.build import Options, Profile
from build_engine.errors import NotVerified, UsageError
from build_engine.flavour import Gpu
from build_engine.job import Job
from build_engine.runner import OnnxRuntimeRunner
from model.bundle import Bundle
from tests.build_engine.cache_processes import a_cache
from tests.build_engine.fake_tensorrt import FakeTensorRT, flavour_of

H100 = Gpu("9.0", "NVIDIA H100")


class WrongRunner:
    """The bundle's graph, but for one task's labels in another order."""

    def __init__(self, graph: bytes) -> None:
        self._right = OnnxRuntimeRunner(graph)
        self.closed = False

    def infer(self, inputs: Any) -> dict[str, Any]:
        outputs = self._right.infer(inputs)
        return outputs | {"genre": np.roll(outputs["genre"], 1, axis=1)}

    def close(self) -> None:
        self.closed = True


def a_job(bundle: Bundle, *, gpu: Gpu | None = H100, options: Options | None = None) -> Job:
    return Job(bundle, options or Options(), flavour_of(FakeTensorRT()), H100, gpu)


def runs(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    monkeypatch.setattr(jobs, "open_engine", lambda *_, **__: runner)
    monkeypatch.setattr(jobs, "runs_engines", lambda: True)


def test_an_engine_that_gives_the_bundles_outputs_is_kept_as_verified(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, OnnxRuntimeRunner(shipped.graph_path.read_bytes()))
    job = a_job(shipped)
    with a_cache(tmp_path).get_or_build(job.fingerprint, lambda: job.build(tmp_path / "timings", print)) as engine:
        assert engine.verified
    assert (tmp_path / "timings").read_bytes() == b"+new"


def test_an_engine_that_gives_other_outputs_is_not_published(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = WrongRunner(shipped.graph_path.read_bytes())
    runs(monkeypatch, wrong)
    job = a_job(shipped)
    with pytest.raises(NotVerified, match="genre: agreement 0"):
        a_cache(tmp_path).get_or_build(job.fingerprint, lambda: job.build(tmp_path / "timings", print))
    assert wrong.closed
    assert not list(tmp_path.glob("*.engine"))


def test_where_the_gpu_is_not_the_engine_is_kept_as_not_verified(shipped: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    assert not a_job(shipped, gpu=None).build(tmp_path / "timings", said.append).verified
    assert said == ["the graph was verified on the CPU, the engine was not: that needs the GPU it is for, and a backend for it"]


def test_the_newest_engine_of_this_precision_is_found_whatever_its_other_options(shipped: Bundle, tmp_path: Path) -> None:
    built, cache = a_job(shipped, gpu=None, options=Options(profile=Profile(1, 8, 32), workspace_mib=64)), a_cache(tmp_path)
    cache.get_or_build(built.fingerprint, lambda: built.build(tmp_path / "timings", print)).close()
    with a_job(shipped).cached(cache) as engine:
        assert engine.fingerprint.options["profile"]["batch_max"] == 32
    with pytest.raises(UsageError, match="has no fp32 engine"):
        a_job(shipped, options=Options(precision="fp32")).cached(cache)
