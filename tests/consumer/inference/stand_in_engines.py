"""Engines of the stand-in for TensorRT, and caches that hold them."""

from pathlib import Path

from build_engine.cache import Built, EngineCache, Fingerprint
from build_engine.flavour import Gpu
from model.bundle import GRAPH, Bundle
from tests.software_cuda import stand_in

SOFTWARE_GPU_NAME = "software CUDA device 0"
BATCH_MAX = 16


def a_plan(bundle: Bundle, *, tuned: int = BATCH_MAX, largest: int = BATCH_MAX, tokens: int | None = None) -> bytes:
    """The bundle's graph as an engine of the stand-in, every row as wide as the bundle's features may be."""
    width = tokens or bundle.manifest.features.tokens_max
    rows = {
        spec.name: tuple(width if size == "tokens" else int(size) for size in spec.shape[1:]) for spec in bundle.manifest.inputs
    }
    profile = {name: tuple((size, *row) for size in (1, tuned, largest)) for name, row in rows.items()}
    return stand_in.make_plan(bundle.graph_path.read_bytes(), profile)  # type: ignore[arg-type]


def a_fingerprint(bundle: Bundle, gpu: Gpu, *, precision: str = "fp16", version: str = stand_in.__version__) -> Fingerprint:
    """As `build_engine` would write it."""
    onnx_sha256 = bundle.manifest.files[GRAPH].sha256
    return Fingerprint(onnx_sha256, {"precision": precision}, "tensorrt", version, gpu.compute_capability, gpu.name)


def publish(folder: Path, fingerprint: Fingerprint, plan: bytes, *, verified: bool = True) -> None:
    """Puts an engine into a cache."""
    cache = EngineCache(folder, size_max_bytes=1 << 30, lock_timeout_s=1, say=print)
    cache.get_or_build(fingerprint, lambda: Built(plan, verified)).close()
