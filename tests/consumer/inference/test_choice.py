"""Which backend runs, and the reason that is given for it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build_engine.flavour import Gpu
from consumer.inference import BackendUnavailable, engines
from consumer.inference.choice import Choice, open_backend
from consumer.inference.device import Device
from consumer.serving import open_model, open_predictor
from consumer.settings import ModelSettings, Settings
from model.bundle import Bundle
from tests.consumer.inference.contract import Golden, assert_same
from tests.consumer.inference.stand_in_engines import a_fingerprint, a_plan, publish
from tests.software_cuda.control import CudaError, SoftCuda

pytestmark = pytest.mark.integration

WISHES = ("auto", "tensorrt")


@pytest.fixture
def gpu(soft_cuda: SoftCuda, stand_in_tensorrt: ModuleType) -> Gpu:
    device = Device()
    device.close()
    return device.gpu


def settings(folder: Path, backend: str = "auto", *, build_seconds: float = 0, allow_fallback: bool = True) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "backend": backend,
            "allow_fallback": allow_fallback,
            "engine_cache": folder,
            "engine_build_seconds": build_seconds,
        }
    )


def told(choice: Choice) -> tuple[str, str, bool]:
    choice.backend.close()
    return choice.backend.name, choice.reason, choice.fallback


def test_onnxruntime_runs_where_it_is_asked_for(shipped: Bundle, tmp_path: Path) -> None:
    found = told(open_backend(settings(tmp_path, "onnxruntime"), shipped))
    assert found == ("onnxruntime", "model.backend asks for it", False)


@pytest.mark.parametrize("wish", WISHES)
def test_without_tensorrt_onnxruntime_runs_and_says_why(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    """`auto` finds nothing wrong with that; who asks for TensorRT gets a fallback."""
    for module in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    name, reason, fallback = told(open_backend(settings(tmp_path, wish), shipped))
    assert (name, fallback) == ("onnxruntime", wish == "tensorrt")
    assert reason.startswith("no TensorRT: no TensorRT here; pip install tensorrt-cu13 or tensorrt-rtx-cu13")


@pytest.mark.parametrize("wish", WISHES)
def test_where_a_fallback_is_forbidden_the_process_ends_with_code_3(
    shipped: Bundle, tmp_path: Path, soft_cuda: SoftCuda, stand_in_tensorrt: ModuleType, wish: str
) -> None:
    """The message names what is missing: here the GPU."""
    soft_cuda.fail("cuInit", CudaError.NO_DEVICE)
    with pytest.raises(
        BackendUnavailable, match=f"model.backend is {wish} and .* the GPU cannot be used: cuInit failed: no CUDA"
    ) as found:
        open_backend(settings(tmp_path, wish, allow_fallback=False), shipped)
    assert found.value.exit_code == 3


def test_without_pycuda_onnxruntime_runs_and_says_so(
    shipped: Bundle, tmp_path: Path, stand_in_tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    name, reason, _ = told(open_backend(settings(tmp_path), shipped))
    assert name == "onnxruntime"
    assert reason.startswith("no TensorRT: pycuda cannot be imported: ")


@pytest.mark.parametrize("verified", [True, False])
def test_with_a_gpu_and_an_engine_tensorrt_runs(
    shipped: Bundle, tmp_path: Path, gpu: Gpu, golden: Golden, *, verified: bool
) -> None:
    fingerprint = a_fingerprint(shipped, gpu)
    publish(tmp_path, fingerprint, a_plan(shipped), verified=verified)
    choice = open_backend(settings(tmp_path), shipped)
    assert_same(choice.backend.infer(golden[0]), golden[1])
    assert choice.backend.engine == fingerprint.digest
    name, reason, fallback = told(choice)
    assert (name, fallback) == ("tensorrt", False)
    assert reason.startswith(f"engine {fingerprint.digest} of tensorrt {fingerprint.version} for {gpu.name}, ")
    assert ("not verified" in reason) == (not verified)


@pytest.mark.parametrize("other", ["bundle", "version", "gpu", "precision", "bytes"])
def test_an_engine_that_is_not_this_ones_is_not_loaded(
    shipped: Bundle, tmp_path: Path, gpu: Gpu, soft_cuda: SoftCuda, other: str
) -> None:
    """Of another graph, TensorRT, GPU or precision, or with one bit changed on disk: none of them is deserialized."""
    fits = a_fingerprint(shipped, gpu, precision="fp32" if other == "precision" else "fp16")
    changed: dict[str, Any] = {
        "bundle": {"onnx_sha256": "0" * 64},
        "version": {"version": "9.9"},
        "gpu": {"gpu": "NVIDIA H100"},
    }.get(other, {})
    fingerprint = type(fits)(**{name: getattr(fits, name) for name in fits.__slots__} | changed)
    publish(tmp_path, fingerprint, a_plan(shipped))
    if other == "bytes":
        path = tmp_path / f"{fingerprint.digest}.engine"
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    name, reason, _ = told(open_backend(settings(tmp_path), shipped))
    assert name == "onnxruntime"
    assert f"has no fp16 engine of {shipped.manifest.label} for {gpu.name}" in reason
    assert soft_cuda.calls("cuStreamCreate") == 0


def test_an_engine_that_does_not_load_is_a_reason(shipped: Bundle, tmp_path: Path, gpu: Gpu, soft_cuda: SoftCuda) -> None:
    publish(tmp_path, a_fingerprint(shipped, gpu), b"what another build of TensorRT wrote")
    name, reason, _ = told(open_backend(settings(tmp_path), shipped))
    assert name == "onnxruntime"
    assert "the engine cannot be deserialized; error: IRuntime" in reason
    assert soft_cuda.live() == []


def test_memory_that_does_not_suffice_is_a_reason(shipped: Bundle, tmp_path: Path, gpu: Gpu, soft_cuda: SoftCuda) -> None:
    publish(tmp_path, a_fingerprint(shipped, gpu), a_plan(shipped))
    soft_cuda.fail("cuMemHostAlloc", CudaError.OUT_OF_MEMORY, times=2)
    name, reason, _ = told(open_backend(settings(tmp_path), shipped))
    assert name == "onnxruntime"
    assert "the engine cannot be made ready: cuMemHostAlloc failed: out of memory" in reason


def test_an_engine_that_is_missing_is_built_by_build_engine(
    shipped: Bundle, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, into the same cache; the next start finds it there."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        publish(tmp_path, a_fingerprint(shipped, gpu), a_plan(shipped))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(engines.subprocess, "run", run)
    for _ in range(2):
        assert told(open_backend(settings(tmp_path, build_seconds=60), shipped))[0] == "tensorrt"
    assert [command[1:6] for command in commands] == [["-m", "build_engine", "build", "--bundle", str(shipped.path)]]


def test_a_build_that_fails_is_a_reason(shipped: Bundle, tmp_path: Path, gpu: Gpu) -> None:
    """The real command, which finds no TensorRT: the stand-in is one of this process only."""
    name, reason, _ = told(open_backend(settings(tmp_path, build_seconds=120), shipped))
    assert name == "onnxruntime"
    assert "the engine was not built: exit code 3: Unavailable: no TensorRT here" in reason


def test_a_build_that_takes_too_long_is_a_reason(shipped: Bundle, tmp_path: Path, gpu: Gpu) -> None:
    _, reason, _ = told(open_backend(settings(tmp_path, build_seconds=0.01), shipped))
    assert "the engine was not built within model.engine_build_seconds, 0.01 s" in reason


@pytest.fixture
def with_an_engine(shipped: Bundle, tmp_path: Path, gpu: Gpu) -> tuple[Settings, str]:
    fingerprint = a_fingerprint(shipped, gpu)
    publish(tmp_path, fingerprint, a_plan(shipped))
    return Settings(model=settings(tmp_path, "tensorrt", allow_fallback=False)), fingerprint.digest


def test_the_served_model_is_proven_on_its_engine_and_names_it(shipped: Bundle, with_an_engine: tuple[Settings, str]) -> None:
    """It is opened, warmed up and closed on its own thread, and its answers are signed with the engine."""
    chosen, digest = with_an_engine
    model = open_model(chosen, shipped, 9)
    try:
        assert (model.identity.epoch, model.identity.engine) == (9, digest)
    finally:
        model.close()
        model.thread.shutdown()


def test_two_models_share_the_gpu_and_one_survives_the_others_end(
    shipped: Bundle, with_an_engine: tuple[Settings, str], golden: Golden, soft_cuda: SoftCuda
) -> None:
    """As in a swap: each lives on its own thread, and what the former frees is not the next one's."""
    chosen, _ = with_an_engine
    former, after = open_model(chosen, shipped, 1), open_model(chosen, shipped, 2)
    answers = [model.thread.submit(model.choice.backend.infer, golden[0]) for model in (former, after)]
    for answer in answers:
        assert_same(answer.result(30), golden[1])
    former.close()
    former.thread.shutdown()
    assert_same(after.thread.submit(after.choice.backend.infer, golden[0]).result(30), golden[1])
    after.close()
    after.thread.shutdown()
    assert soft_cuda.live() == []


def test_who_cannot_wait_builds_nothing(shipped: Bundle, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that tries suspects and `consumer predict` take an engine from the cache or ONNX Runtime."""
    monkeypatch.setattr(engines, "_build", lambda *_: pytest.fail("a build was begun"))
    predictor = open_predictor(Settings(model=settings(tmp_path, build_seconds=900)))
    assert predictor.identity.engine is None
    predictor.close()
    publish(tmp_path, a_fingerprint(shipped, gpu), a_plan(shipped))
    predictor = open_predictor(Settings(model=settings(tmp_path, build_seconds=900)))
    predictor.warm_up()
    assert predictor.identity.engine is not None
    predictor.close()
