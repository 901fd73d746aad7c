"""The engine of a bundle for the GPU in this machine: from the cache, or built there in a process of its own.

The service never compiles: `python -m build_engine build` does, so that the compiler's memory and its imports (onnx) go with
it, and replicas that start together wait for one of them.
"""

import subprocess
import sys
from pathlib import Path

import structlog

from build_engine.cache import Engine, EngineCache, Fingerprint, default_folder
from build_engine.errors import Unavailable
from build_engine.flavour import Flavour, Gpu
from model.bundle import GRAPH, Bundle

log = structlog.get_logger(__name__)

PRECISION = "fp16"  # fp32 engines are for comparing


def get_engine(bundle: Bundle, flavour: Flavour, gpu: Gpu, *, folder: Path | None, build_seconds: float) -> Engine:
    """The engine, its sha256 compared, and safe from eviction until it is closed.

    Args:
        folder: of the cache; None is `build_engine`'s own.
        build_seconds: how long a build may take; 0: none is tried.

    Raises:
        Unavailable: the cache has none, and none was built; the message says why.
    """
    try:
        cache = EngineCache(
            folder or default_folder(),
            size_max_bytes=sys.maxsize,  # what is too much is for whoever builds to say
            lock_timeout_s=0,
            say=lambda line: log.warning("engine_cache", said=line),
        )
        if (engine := _found(cache, bundle, flavour, gpu)) is not None:
            return engine
        of = f"{bundle.manifest.label} for {gpu.name} and {flavour.name} {flavour.version}"
        missing = f"{cache.folder} has no {PRECISION} engine of {of}"
        if build_seconds == 0:
            raise Unavailable(f"{missing}, and none is built here; `python -m build_engine build` makes one")
        _build(bundle, flavour, cache.folder, build_seconds)
        if (engine := _found(cache, bundle, flavour, gpu)) is not None:
            return engine
        raise Unavailable(f"{missing}, though one was built just now")
    except (OSError, RuntimeError) as error:  # the second: no home folder
        raise Unavailable(f"the engine cache cannot be used: {error}") from error


def _found(cache: EngineCache, bundle: Bundle, flavour: Flavour, gpu: Gpu) -> Engine | None:
    def fits(found: Fingerprint) -> bool:
        return (
            found.onnx_sha256 == bundle.manifest.files[GRAPH].sha256
            and (found.flavour, found.version) == (flavour.name, flavour.version)
            and found.compute_capability == gpu.compute_capability
            and found.gpu in {gpu.name, "any"}
            and found.options.get("precision") == PRECISION
        )

    return cache.newest(fits)


def _build(bundle: Bundle, flavour: Flavour, folder: Path, seconds: float) -> None:
    """Raises: Unavailable: with the last words of the command."""
    log.info("engine_build_begun", model=bundle.manifest.label, seconds_max=seconds)
    command = [sys.executable, "-m", "build_engine", "build", "--bundle", str(bundle.path), "--cache", str(folder)]
    command += ["--flavour", flavour.name, "--precision", PRECISION, "--lock-timeout-s", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the engine was not built within model.engine_build_seconds, {seconds:g} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-3:] or ["it said nothing"]
        raise Unavailable(f"the engine was not built: exit code {done.returncode}: {'; '.join(line.strip() for line in said)}")
