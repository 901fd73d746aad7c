"""The software CUDA driver and the real pycuda built against it, both in the cache: never in the environment of the locks.

The driver compiles in a second and is named after its sources; pycuda takes minutes and is built once. CUDA's headers come
from PyPI.
Source for how pycuda is configured: https://documen.tician.de/pycuda/, `aksetup_helper.py` in its sources.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.infrastructure import versions
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.paths import cache_folder

_SOURCES = Path(__file__).parent
_HEADER_PACKAGES = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-profiler-api-cu12")
_INSTALL_TIMEOUT_S = 300
_COMPILE_TIMEOUT_S = 120
_PYCUDA_TIMEOUT_S = 1800  # 1 to 2 minutes on two quiet cores
_COMPILER_FLAGS = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-pthread", "-shared", "-fPIC", "-fvisibility=hidden"]
_PYCUDA_SETTINGS = 'CUDA_ENABLE_CURAND = False\nCXXFLAGS = ["-O1", "-g0", "-w"]\n'


@dataclass(frozen=True, slots=True)
class SoftwareCuda:
    """What was built.

    Attributes:
        library: `libcuda.so.1`; to be loaded with RTLD_GLOBAL before `import pycuda.driver`.
        packages: a folder for `sys.path` with pycuda.
    """

    library: Path
    packages: Path


def build() -> SoftwareCuda:
    """Builds what is not in the cache yet. A second one at the same time waits for the first.

    Raises:
        SetupError: a compiler is missing, or a package cannot be had; the message says which.
    """
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            raise SetupError(f"the software CUDA driver needs `{compiler}` to compile it and pycuda: install it")
    with (cache_folder() / "software-cuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        headers = _headers()
        library = _driver(headers)
        return SoftwareCuda(library, _pycuda(headers, library))


def _headers() -> list[Path]:
    """The folders with `cuda.h` and `cudaProfiler.h`."""
    folder = cache_folder() / f"cuda-headers-{versions.CUDA_HEADERS}"
    if not folder.is_dir():
        partial = _empty(folder.with_suffix(".partial"))
        with Stopwatch(f"installing the headers of CUDA {versions.CUDA_HEADERS}"):
            packages = [f"{name}=={versions.CUDA_HEADERS}" for name in _HEADER_PACKAGES]
            run(_install(partial, packages), log_name="software-cuda", timeout_seconds=_INSTALL_TIMEOUT_S)
        partial.rename(folder)
    includes = [folder / "nvidia" / part / "include" for part in ("cuda_runtime", "cuda_profiler_api")]
    for include, name in zip(includes, ("cuda.h", "cudaProfiler.h"), strict=True):
        if not (include / name).is_file():
            raise SetupError(f"expected {name} in {include}, found none")
    return includes


def _driver(headers: list[Path]) -> Path:
    sources = sorted(_SOURCES.glob("*.c"))
    digest = hashlib.sha256()
    for source in [*sources, _SOURCES / "driver.h", _SOURCES / "build.py"]:
        digest.update(source.read_bytes())
    folder = cache_folder() / f"software-cuda-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        partial = _empty(folder.with_suffix(".partial"))
        library = partial / "libcuda.so.1"
        compile_it = ["gcc", *_COMPILER_FLAGS, *(f"-I{include}" for include in headers), *map(str, sources)]
        compile_it += ["-Wl,-soname,libcuda.so.1", "-o", str(library)]
        run(compile_it, log_name="software-cuda", timeout_seconds=_COMPILE_TIMEOUT_S)
        (partial / "libcuda.so").symlink_to(library.name)  # what `-lcuda` looks for
        partial.rename(folder)
    return folder / "libcuda.so.1"


def _pycuda(headers: list[Path], library: Path) -> Path:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / f"pycuda-{versions.PYCUDA}-py{python}"
    if not folder.is_dir():
        partial = _empty(folder.with_suffix(".partial"))
        home = _empty(folder.with_suffix(".home"))
        env = _environment(home, headers, library)
        # Not from a cache of wheels: that would have been built against some other driver.
        install = [*_install(partial, [f"pycuda=={versions.PYCUDA}"]), "--no-binary", "pycuda", "--no-cache"]
        with Stopwatch(f"building pycuda {versions.PYCUDA} (once; 1 to 5 minutes)"):
            run(install, log_name="software-cuda", timeout_seconds=_PYCUDA_TIMEOUT_S, env=env)
        if not any((partial / "pycuda").glob("_driver*.so")):
            raise SetupError(f"expected pycuda/_driver*.so in {partial}, found none")
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(folder)  # only a finished build gets the final name
    return folder


def pycuda_environment(home: Path) -> dict[str, str]:
    """What pycuda compiles in, for a wheel that is to run elsewhere: the software driver serves the linker alone.

    Args:
        home: a folder that is made, for the file where pycuda looks for its settings.

    Raises:
        SetupError: see `build`.
    """
    headers = _headers()
    home.mkdir()
    return _environment(home, headers, _driver(headers))


def _environment(home: Path, headers: list[Path], library: Path) -> dict[str, str]:
    (home / ".aksetup-defaults.py").write_text(_PYCUDA_SETTINGS)  # it looks for its settings there only
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config"),
        "CPATH": ":".join(map(str, headers)),
        "LIBRARY_PATH": str(library.parent),
    }


def _install(target: Path, packages: Iterable[str]) -> list[str]:
    uv = shutil.which("uv") or str(Path(".tools/bin/uv").resolve())
    return [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--target", str(target), *packages]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
