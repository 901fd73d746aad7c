"""The compiler of `tensorrt_rtx`, which needs neither a GPU nor a driver, in a folder of the cache for PYTHONPATH."""

import fcntl
import shutil
import sys
from pathlib import Path

from tests.infrastructure import versions
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.paths import cache_folder

_INSTALL_TIMEOUT_S = 600


def install_packages(folder: Path, packages: list[str]) -> None:
    """Packages from PyPI into a folder for PYTHONPATH, without what they depend on. Raises: SetupError."""
    uv = shutil.which("uv") or str(Path(".tools/bin/uv").resolve())
    install = [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--target", str(folder)]
    run([*install, *packages], log_name="packages", timeout_seconds=_INSTALL_TIMEOUT_S)


def fetch_tensorrt_rtx() -> Path:
    """The folder, filled by the first who asks (95 MB to download); not the environment's own, which the locks describe.

    Raises:
        SetupError: it cannot be installed.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / f"tensorrt-rtx-{versions.TENSORRT_RTX}-py{python}"
    with (cache_folder() / "tensorrt-rtx.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        packages = [f"tensorrt-rtx-cu13-{part}=={versions.TENSORRT_RTX}" for part in ("libs", "bindings")]
        with Stopwatch(f"installing tensorrt_rtx {versions.TENSORRT_RTX}"):
            install_packages(partial, packages)
        if not (partial / "tensorrt_rtx_bindings").is_dir():
            raise SetupError(f"expected tensorrt_rtx_bindings in {partial}, found none")
        partial.rename(folder)  # only a finished installation gets the final name
        return folder
