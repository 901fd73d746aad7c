"""Which backend runs, and why: said once, at start, and exported as a metric."""

from dataclasses import dataclass

from build_engine.errors import EngineError
from build_engine.flavour import find_flavour
from consumer.inference import BackendUnavailable, InferenceBackend
from consumer.inference.device import Device
from consumer.inference.engines import get_engine
from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.inference.tensorrt import TensorRtBackend
from consumer.settings import ModelSettings
from model.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend, the reason for it, and whether it is not the one wished for."""

    backend: InferenceBackend
    reason: str
    fallback: bool


def open_backend(settings: ModelSettings, bundle: Bundle, *, may_build: bool = True) -> Choice:
    """Opens the backend that the settings ask for, or the next best, on the thread that will use it.

    `auto` wishes for TensorRT where there is a GPU, and is content with ONNX Runtime where there is none.

    Args:
        may_build: whether an engine that the cache lacks is built, which takes minutes (`model.engine_build_seconds`).

    Raises:
        BackendUnavailable: TensorRT cannot run and `model.allow_fallback` is false; the message says what is missing.
    """
    if settings.backend == "onnxruntime":
        return Choice(_on_cpu(settings, bundle), "model.backend asks for it", fallback=False)
    try:
        backend, reason = _on_gpu(settings, bundle, build_seconds=settings.engine_build_seconds if may_build else 0)
        return Choice(backend, reason, fallback=False)
    except EngineError as error:
        missing = "; ".join(line.strip() for line in str(error).splitlines())
    if not settings.allow_fallback:
        raise BackendUnavailable(
            f"model.backend is {settings.backend} and model.allow_fallback is false, but TensorRT: {missing}"
        )
    return Choice(_on_cpu(settings, bundle), f"no TensorRT: {missing}", fallback=settings.backend == "tensorrt")


def _on_cpu(settings: ModelSettings, bundle: Bundle) -> InferenceBackend:
    return OnnxRuntimeBackend(bundle.graph_path, threads=settings.threads)


def _on_gpu(settings: ModelSettings, bundle: Bundle, *, build_seconds: float) -> tuple[InferenceBackend, str]:
    """The engine's backend, and what to say of it. Raises: EngineError: something that it needs is not here."""
    flavour, device = find_flavour("auto"), Device()
    try:
        engine = get_engine(bundle, flavour, device.gpu, folder=settings.engine_cache, build_seconds=build_seconds)
    except BaseException:
        device.close()
        raise
    with engine:  # loaded, it may be evicted from the cache
        digest = engine.fingerprint.digest
        backend = TensorRtBackend(device, engine.plan, bundle.manifest, flavour, engine=digest)
    checked = "verified when it was built" if engine.verified else "not verified when it was built, for want of its GPU"
    return backend, f"engine {digest} of {flavour.name} {flavour.version} for {device.gpu.name}, {checked}"
