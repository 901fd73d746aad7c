"""The real `tensorrt` modules, which import on a machine without a GPU, in folders of the cache."""

import fcntl
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.infrastructure import versions
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.jars import DEPENDENCY_PLUGIN, empty_folder, need_maven
from tests.infrastructure.paths import cache_folder
from tests.infrastructure.tensorrt_rtx import install_packages

MODULE = "tensorrt_bindings"
_FETCH_TIMEOUT_S = 1800
# What the module loads; the resources to build engines with, up to 1.4 GB more, are of use on a GPU only.
_LIBRARIES = ("libnvinfer.so.", "libnvinfer_plugin.so.", "libnvonnxparser.so.")


@dataclass(frozen=True, slots=True)
class TensorRT:
    """An installed version: `packages` is for PYTHONPATH, `libraries` for LD_LIBRARY_PATH."""

    version: str
    packages: Path
    libraries: Path


def fetch_tensorrt(version: str) -> TensorRT:
    """One of `versions.TENSORRT`, fetched by the first who asks: 0.5 to 1.1 GB to download, 0.3 to 0.7 GB to keep.

    Raises:
        SetupError: it cannot be had.
    """
    bindings, artifact = versions.TENSORRT[version]
    folder = cache_folder() / f"tensorrt-{version}"
    found = TensorRT(version, folder / "packages", folder / "libraries")
    with (cache_folder() / f"tensorrt-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return found
        with Stopwatch(f"fetching TensorRT {version}"):
            partial = empty_folder(folder.with_name(folder.name + ".partial"))
            install_packages(partial / "packages", [bindings])
            download = empty_folder(partial / "download")
            _extract(fetch_redist(artifact, download), partial / "libraries")
            shutil.rmtree(download)
            partial.rename(folder)  # only a finished download gets the final name
    return found


def fetch_redist(artifact: str, folder: Path) -> Path:
    """The jar with all libraries of one of `versions.TENSORRT`, in the folder. Raises: SetupError."""
    need_maven()
    what = f"-Dartifact={artifact}:jar:linux-x86_64-redist"
    goal = [f"{DEPENDENCY_PLUGIN}:copy", what, f"-DoutputDirectory={folder.resolve()}"]
    run(["mvn", "-q", "-B", *goal], log_name="maven", timeout_seconds=_FETCH_TIMEOUT_S, cwd=folder)
    return next(folder.glob("*-redist.jar"))


def _extract(jar: Path, libraries: Path) -> None:
    libraries.mkdir()
    with zipfile.ZipFile(jar) as archive:
        for entry in archive.namelist():
            name = entry.rpartition("/")[2]
            if name.startswith(_LIBRARIES):
                with archive.open(entry) as source, (libraries / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    found = sorted(path.name for path in libraries.iterdir())
    if len(found) != len(_LIBRARIES):
        raise SetupError(f"expected {', '.join(_LIBRARIES)} in {jar.name}, found: {', '.join(found) or 'none'}")
