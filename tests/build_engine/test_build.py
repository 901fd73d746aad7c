"""Compiling: one code path for every TensorRT, options that go together, and failures with their reasons."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from build_engine.build import Compiled, Options, Profile, compile_engine, target_of
from build_engine.errors import Unavailable, UsageError
from build_engine.flavour import Gpu, TensorRTError, find_flavour, find_gpu
from tests.build_engine.fake_tensorrt import FakeTensorRT, flavour_of

H100 = Gpu("9.0", "NVIDIA H100")


def compiled(module: FakeTensorRT, options: Options | None = None, timing_cache: bytes | None = None) -> Compiled:
    return compile_engine(flavour_of(module), b"graph", options or Options(), gpu=H100, timing_cache=timing_cache)


@pytest.mark.parametrize(("number", "bits"), [(1, 2), (0, 1)], ids=["10.x", "11"])
def test_the_network_is_strongly_typed_in_every_version(number: int, bits: int) -> None:
    module = FakeTensorRT(strongly_typed=number)
    compiled(module)
    assert module.network_flags == bits


def test_only_the_batch_varies_in_the_profile() -> None:
    module = FakeTensorRT()
    compiled(module, Options(profile=Profile(2, 64, 512)))
    assert module.profile_shapes == {
        "token_ids": ((2, 320), (64, 320), (512, 320)),
        "cover_present": ((2, 1), (64, 1), (512, 1)),
    }


def test_a_graph_in_which_more_than_the_batch_varies_is_refused() -> None:
    module = FakeTensorRT()
    module.shapes["token_ids"] = (-1, -1)
    with pytest.raises(UsageError, match="token_ids: expected only the batch to vary"):
        compiled(module)


def test_tf32_is_off_and_a_version_without_the_flag_does_not_mind() -> None:
    module = FakeTensorRT()
    compiled(module)
    assert module.config.flags == set()
    assert compiled(FakeTensorRT(flags=())).plan == b"plan"


def test_options_reach_the_builder() -> None:
    module = FakeTensorRT()
    options = Options(workspace_mib=512, optimization_level=5, hardware_compatibility="ampere_plus", version_compatible=True)
    compiled(module, options)
    config = module.config
    assert config.pools == {"workspace": 512 << 20}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    assert config.flags == {"VERSION_COMPATIBLE"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(hardware_compatibility="same_compute_capability"), "no hardware compatibility same_compute_capability"),
        (Options(version_compatible=True), "no builder flag VERSION_COMPATIBLE"),
    ],
)
def test_an_option_that_this_version_lacks_is_refused_not_dropped(options: Options, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        compiled(FakeTensorRT(flags=()), options)


def test_a_build_that_returns_none_carries_the_errors_that_were_logged() -> None:
    module = FakeTensorRT()
    module.plan = None
    with pytest.raises(TensorRTError) as raised:
        compiled(module)
    assert raised.value.lines == ("error: Could not find any implementation for node MatMul_1",)


def test_a_builder_that_cannot_be_made_carries_the_errors_that_were_logged() -> None:
    module = FakeTensorRT()
    module.has_driver = False
    with pytest.raises(TensorRTError, match="CUDA initialization failure with error: 35"):
        compiled(module)


def test_a_graph_that_cannot_be_parsed_carries_every_parse_error() -> None:
    module = FakeTensorRT()
    module.parse_errors = ["node 3: no importer", "node 9: no importer"]
    with pytest.raises(TensorRTError, match=r"cannot be parsed\n  node 3: no importer\n  node 9: no importer"):
        compiled(module)


def test_timings_of_former_builds_are_used_and_grow() -> None:
    assert compiled(FakeTensorRT(), timing_cache=b"old").timing_cache == b"old+new"


def test_damaged_timings_are_begun_anew() -> None:
    assert compiled(FakeTensorRT(), timing_cache=b"damaged").timing_cache == b"+new"


def test_timings_of_another_gpu_are_left_as_they_are() -> None:
    module = FakeTensorRT()
    module.timings_are_foreign = True
    assert compiled(module, timing_cache=b"old") == Compiled(b"plan", None)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "0,1,2", "4,2,8", "1,8,4", "1,2,99999999", "1,2,3,4", ""])
def test_a_batch_that_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch"):
        Profile.parse(text)


@pytest.mark.parametrize("values", [{"optimization_level": 6}, {"optimization_level": -1}, {"workspace_mib": 0}], ids=str)
def test_a_number_out_of_its_range_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--"):
        Options(**values)  # type: ignore[arg-type]


def test_tensorrt_builds_for_the_gpu_that_is_there() -> None:
    tensorrt = flavour_of(FakeTensorRT())
    assert target_of(tensorrt, Options(), compute_capability=None, gpu=H100) == H100
    with pytest.raises(Unavailable, match="nvidia-smi shows none"):
        target_of(tensorrt, Options(), compute_capability=None, gpu=None)
    with pytest.raises(UsageError, match="--compute-capability"):
        target_of(tensorrt, Options(), compute_capability="8.9", gpu=H100)


def test_tensorrt_rtx_builds_for_a_compute_capability_and_any_gpu_of_it() -> None:
    rtx = flavour_of(FakeTensorRT(), "tensorrt_rtx")
    assert target_of(rtx, Options(), compute_capability="8.9", gpu=None) == Gpu("8.9", "any")
    assert target_of(rtx, Options(), compute_capability=None, gpu=Gpu("12.0", "RTX 5090")) == Gpu("12.0", "any")
    with pytest.raises(UsageError, match="expected one"):
        target_of(rtx, Options(), compute_capability=None, gpu=None)
    with pytest.raises(UsageError, match="tensorrt_rtx has its own"):
        target_of(rtx, Options(version_compatible=True), compute_capability="8.9", gpu=None)


def a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(name)
    module.__version__ = "1.2.3"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def _no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_no_tensorrt")
def test_auto_takes_tensorrt_before_tensorrt_rtx_and_bindings_without_the_metapackage(monkeypatch: pytest.MonkeyPatch) -> None:
    a_module("tensorrt_rtx_bindings", monkeypatch)
    assert find_flavour("auto").name == "tensorrt_rtx"
    a_module("tensorrt_bindings", monkeypatch)
    assert find_flavour("auto").name == "tensorrt"
    assert find_flavour("tensorrt_rtx").version == "1.2.3"


@pytest.mark.usefixtures("_no_tensorrt")
def test_without_any_the_message_says_what_to_install() -> None:
    with pytest.raises(Unavailable, match="pip install tensorrt-cu13 or tensorrt-rtx-cu13"):
        find_flavour("auto")


@pytest.fixture
def _two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` with an H100 and, as number 1, a card without a readable compute capability."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in --id=0) echo "9.0, NVIDIA H100 80GB HBM3";; --id=1) echo "[N/A], Old";; *) exit 6;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, Gpu("9.0", "NVIDIA H100 80GB HBM3")),
        ("0,1", Gpu("9.0", "NVIDIA H100 80GB HBM3")),
        ("1,0", None),
        ("7", None),
        ("", None),
        ("-1", None),
    ],
)
def test_the_gpu_is_the_first_visible_one(visible: str | None, found: Gpu | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu() == found


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpu() is None
