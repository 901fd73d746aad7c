"""The TensorRT backend keeps the contract, overlaps its passes, and frees everything whatever fails.

It runs for real up to the kernels: the real pycuda on a software CUDA driver, where a stand-in for TensorRT computes.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from build_engine.errors import Unavailable, UsageError
from build_engine.flavour import Flavour, TensorRTError, find_flavour
from consumer.inference import DeviceLost, InferenceFailed, OutOfMemory
from consumer.inference.device import Device, Lane
from consumer.inference.tensorrt import PARTS, SLOTS, TensorRtBackend, WrongEngine, open_engine
from model.bundle import Bundle, Manifest
from tests.consumer.inference.contract import BATCH_MAX, BackendContract, Golden, assert_same, some_rows
from tests.consumer.inference.stand_in_engines import a_plan
from tests.software_cuda import stand_in
from tests.software_cuda.control import CudaError, SoftCuda

pytestmark = pytest.mark.integration

FINGERPRINT = "0123456789abcdef0123456789abcdef"
Opener = Callable[..., TensorRtBackend]


@pytest.fixture
def flavour(stand_in_tensorrt: ModuleType) -> Flavour:
    return find_flavour("tensorrt")


@pytest.fixture
def opened(shipped: Bundle, flavour: Flavour) -> Iterator[Opener]:
    """Opens backends, and closes them after the test."""
    backends: list[TensorRtBackend] = []

    def open_it(plan: bytes | None = None, manifest: Manifest | None = None) -> TensorRtBackend:
        backends.append(
            TensorRtBackend(Device(), plan or a_plan(shipped), manifest or shipped.manifest, flavour, engine=FINGERPRINT)
        )
        return backends[-1]

    yield open_it
    for backend in backends:
        backend.close()


@pytest.fixture
def backend(opened: Opener) -> TensorRtBackend:
    return opened()


class TestTensorRt(BackendContract):
    """The contract on TensorRT."""


# ── overlap ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_slot_computes_while_the_other_copies_and_computes(
    soft_cuda: SoftCuda, backend: TensorRtBackend, golden: Golden
) -> None:
    """Four passes of a batch, in turn on two streams: each overlaps the one before."""
    feed, expected = golden
    many = np.arange(4 * BATCH_MAX) % len(feed["cover"])
    backend.infer(some_rows(feed, many))  # both slots know their shapes
    stand_in.behaviour().delay_s = 0.05
    before = len(soft_cuda.timeline())
    assert_same(backend.infer(some_rows(feed, many)), some_rows(expected, many))
    spans = soft_cuda.timeline()[before:]
    kernels = sorted((span for span in spans if span.name == "cuLaunchHostFunc"), key=lambda span: span.start_ns)
    assert len(kernels) == 4
    assert len({span.stream for span in kernels}) == SLOTS
    assert all(one.overlaps(other) for one, other in zip(kernels[::2], kernels[1::2], strict=True))
    copies = [span for span in spans if span.name.startswith("cuMemcpyHtoD")]
    assert any(copy.overlaps(kernel) for copy in copies for kernel in kernels if copy.stream != kernel.stream)


def test_a_pass_is_one_copy_in_and_one_copy_out_waited_for_asleep(
    soft_cuda: SoftCuda, backend: TensorRtBackend, golden: Golden
) -> None:
    calls = [soft_cuda.calls(name) for name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventSynchronize")]
    backend.infer(some_rows(golden[0], slice(0, 3)))
    assert [soft_cuda.calls(name) for name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventSynchronize")] == [
        n + 1 for n in calls
    ]
    assert soft_cuda.calls("cuEventSynchronize, spinning") == 0


def test_batches_are_rounded_up_to_a_few_sizes(opened: Opener, golden: Golden, shipped: Bundle) -> None:
    """An engine tuned for 12 rows that takes up to 16 gets 1, 2, 4, 8 or 12 at once."""
    seen: set[int] = set()
    backend = opened(a_plan(shipped, tuned=12))
    stand_in.behaviour().spoil = lambda outputs: seen.add(len(outputs["group"]))
    for rows in range(1, 40):
        backend.infer(some_rows(golden[0], slice(0, rows)))
    assert seen == {1, 2, 4, 8, 12}


def test_the_parts_of_a_batch_are_timed_on_the_streams(backend: TensorRtBackend, golden: Golden) -> None:
    stand_in.behaviour().delay_s = 0.02
    backend.infer(some_rows(golden[0], slice(0, 2 * BATCH_MAX)))
    assert tuple(backend.parts_ms) == PARTS
    assert backend.parts_ms["compute"] >= 2 * 20
    assert all(ms > 0 for ms in backend.parts_ms.values())


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────────────────────


def test_another_thread_may_neither_infer_nor_close(backend: TensorRtBackend, golden: Golden) -> None:
    refused: list[str] = []

    def use() -> None:
        for call in (lambda: backend.infer(golden[0]), backend.close):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert all("belongs to one thread" in reason for reason in refused)


def test_a_broken_engine_is_refused_with_what_tensorrt_logged(opened: Opener, shipped: Bundle) -> None:
    for plan in (b"no engine", a_plan(shipped)[:-100_000]):
        with pytest.raises(TensorRTError, match=r"cannot be deserialized\n  error: IRuntime"):
            opened(plan)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"drop": "sales"}, "expected the outputs .*, topics, zeal, found author, .*, sales, shelves, topics"),
        ({"drop": "cover"}, "expected the inputs .*, zeal, found cover, "),
        ({"widen": "genre"}, r"genre: expected float32 \(-1, 28\), found float32 \(-1, 27\)"),
        ({"dtype": "cover"}, r"cover: expected int32 \(-1, 1, 64, 64\), found uint8"),
    ],
)
def test_an_engine_of_another_bundle_is_refused(opened: Opener, shipped: Bundle, changed: dict[str, str], message: str) -> None:
    manifest = shipped.manifest
    inputs, outputs = list(manifest.inputs), list(manifest.outputs)
    for specs in (inputs, outputs):
        for index, spec in enumerate(specs):
            if spec.name == changed.get("drop"):
                specs[index] = spec.model_copy(update={"name": "zeal"})
            elif spec.name == changed.get("widen"):
                specs[index] = spec.model_copy(update={"shape": ("batch", 28)})
            elif spec.name == changed.get("dtype"):
                specs[index] = spec.model_copy(update={"dtype": "int32"})
    with pytest.raises(WrongEngine, match=message):
        opened(manifest=manifest.model_copy(update={"inputs": tuple(inputs), "outputs": tuple(outputs)}))


def test_an_engine_that_is_too_narrow_for_the_features_is_refused(opened: Opener, shipped: Bundle) -> None:
    with pytest.raises(WrongEngine, match=r"expected at least 320 tokens a row, .* found 200"):
        opened(a_plan(shipped, tokens=200))


def test_an_engine_of_types_that_numpy_lacks_is_refused_and_freed(
    opened: Opener, stand_in_tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an error's frames name is let go before the context is."""

    def no_type(trt_type: object) -> type:
        raise TypeError(f"Could not resolve TensorRT datatype to an equivalent numpy datatype: {trt_type}")

    monkeypatch.setattr(stand_in_tensorrt, "nptype", no_type)
    with pytest.raises(TensorRTError, match="cannot be made ready: Could not resolve"):
        opened()


def test_a_batch_that_is_wider_than_the_engine_fails(backend: TensorRtBackend, golden: Golden) -> None:
    more = ((0, 0), (0, 321 - golden[0]["token_ids"].shape[1]))
    wide = {name: np.pad(array, more) if name.startswith("token") else array for name, array in golden[0].items()}
    with pytest.raises(InferenceFailed, match="input token_ids: expected at most 320 a row, found 321"):
        backend.infer(wide)


def test_cuda_graphs_are_refused_where_nothing_captures_them(shipped: Bundle, flavour: Flavour) -> None:
    with pytest.raises(UsageError, match="only tensorrt_rtx captures by itself, not tensorrt"):
        open_engine(a_plan(shipped), shipped.manifest, flavour="tensorrt", cuda_graphs=True)


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────

OPENING = (
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuStreamCreate",
    "cuEventCreate",
    "cuMemHostAlloc",
    "cuMemAlloc",
    "cuStreamSynchronize",
)
RUNNING = (
    "cuEventRecord",
    "cuMemcpyHtoDAsync",
    "cuLaunchHostFunc",
    "cuMemcpyDtoHAsync",
    "cuEventSynchronize",
    "cuEventElapsedTime",
)
FREEING = (
    "cuStreamSynchronize",
    "cuMemFree",
    "cuMemFreeHost",
    "cuEventDestroy",
    "cuStreamDestroy",
    "cuCtxPopCurrent",
    "cuDevicePrimaryCtxRelease",
)


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("call", OPENING)
def test_whatever_fails_while_it_opens_nothing_is_held(soft_cuda: SoftCuda, opened: Opener, call: str, nth: int) -> None:
    opened().close()
    before = soft_cuda.calls(call)
    assert before > 0, f"{call} is not called, so this test tests nothing"
    soft_cuda.fail(call, CudaError.UNKNOWN, nth=nth)
    with contextlib.suppress(Unavailable, TensorRTError):
        backend = opened()
        assert soft_cuda.calls(call) - before < nth, "the failure went unseen"
        backend.close()
    assert soft_cuda.live() == []


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("call", RUNNING)
def test_whatever_fails_in_a_batch_fails_that_batch_alone(
    soft_cuda: SoftCuda, backend: TensorRtBackend, golden: Golden, call: str, nth: int
) -> None:
    feed, expected = golden
    stand_in.behaviour().delay_s = 0.01
    soft_cuda.fail(call, CudaError.INVALID_VALUE, nth=nth)
    with pytest.raises(InferenceFailed):
        backend.infer(some_rows(feed, slice(0, 3 * BATCH_MAX)))
    assert_same(backend.infer(feed), expected)


@pytest.mark.parametrize("call", RUNNING)
def test_memory_that_runs_out_is_said_as_such(soft_cuda: SoftCuda, backend: TensorRtBackend, golden: Golden, call: str) -> None:
    feed, expected = golden
    soft_cuda.fail(call, CudaError.OUT_OF_MEMORY)
    with pytest.raises(InferenceFailed) as failure:
        backend.infer(feed)
    assert isinstance(failure.value, OutOfMemory) or call == "cuLaunchHostFunc"  # TensorRT's own word for it is tested below
    assert_same(backend.infer(feed), expected)


@pytest.mark.parametrize(
    "code", [CudaError.ECC_UNCORRECTABLE, CudaError.ILLEGAL_ADDRESS, CudaError.LAUNCH_TIMEOUT, CudaError.LAUNCH_FAILED]
)
def test_an_error_that_stays_is_a_lost_device_and_all_is_freed(
    soft_cuda: SoftCuda, opened: Opener, golden: Golden, code: CudaError
) -> None:
    backend = opened()
    stand_in.behaviour().kernel_error = code
    for _ in range(2):
        with pytest.raises(DeviceLost):
            backend.infer(golden[0])
    assert DeviceLost.exit_code == 1
    backend.close()
    assert soft_cuda.live() == []


@pytest.mark.parametrize("call", RUNNING)
def test_a_device_that_is_lost_in_any_call_is_lost(
    soft_cuda: SoftCuda, backend: TensorRtBackend, golden: Golden, call: str
) -> None:
    soft_cuda.fail(call, CudaError.ILLEGAL_ADDRESS)
    with pytest.raises(DeviceLost):
        backend.infer(golden[0])


@pytest.mark.parametrize("call", FREEING)
def test_whatever_fails_while_it_closes_nothing_is_held(soft_cuda: SoftCuda, opened: Opener, golden: Golden, call: str) -> None:
    backend = opened()
    backend.infer(golden[0])
    before = soft_cuda.calls(call)
    soft_cuda.fail(call, CudaError.UNKNOWN)
    backend.close()
    assert soft_cuda.calls(call) > before, f"{call} is not called, so this test tests nothing"
    assert soft_cuda.live() == []


def test_closing_waits_for_what_an_interrupt_left_under_way(
    backend: TensorRtBackend, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was freed under a copy or a kernel would be a violation of the driver's rules."""

    def interrupted(lane: Lane) -> None:
        raise KeyboardInterrupt

    stand_in.behaviour().delay_s = 0.05
    monkeypatch.setattr(Lane, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.infer(golden[0])
    backend.close()


def test_outputs_that_are_not_finite_are_handed_on(backend: TensorRtBackend, golden: Golden) -> None:
    """Which rows they are is the caller's question (`Predictor.predict`)."""

    def spoil(outputs: dict[str, Any]) -> None:
        outputs["group"][1] = np.nan

    stand_in.behaviour().spoil = spoil
    found = backend.infer(some_rows(golden[0], slice(0, 3)))
    assert np.isnan(found["group"]).all(axis=1).tolist() == [False, True, False]
