"""Which backend runs, and why: said once, at start, and exported as a metric."""

from dataclasses import dataclass

from consumer.inference import BackendUnavailable, InferenceBackend
from consumer.inference.onnx import OnnxRuntimeBackend
from consumer.settings import ModelSettings
from model.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend, the reason for it, and whether it is not the one wished for."""

    backend: InferenceBackend
    reason: str
    fallback: bool


def open_backend(settings: ModelSettings, bundle: Bundle) -> Choice:
    """Opens the backend that the settings ask for, or the next best.

    Raises:
        BackendUnavailable: TensorRT is asked for, cannot run, and `model.allow_fallback` is false.
    """
    if settings.backend == "tensorrt" and not settings.allow_fallback:
        raise BackendUnavailable(
            "model.backend is tensorrt and model.allow_fallback is false, but this version has no TensorRT backend yet; "
            "set model.backend to onnxruntime"
        )
    reason = {
        "onnxruntime": "model.backend asks for it",
        "auto": "this version has no TensorRT backend yet",
        "tensorrt": "tensorrt was asked for, but this version has no TensorRT backend yet",
    }[settings.backend]
    backend = OnnxRuntimeBackend(bundle.graph_path, threads=settings.threads)
    return Choice(backend, reason, fallback=settings.backend == "tensorrt")
