"""What was carried becomes a folder of packages and one of libraries. Only the standard library, and the pip that was carried."""

import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.carried import Contents, NotWhole, join

LIBRARIES = ".jar"  # how the file with TensorRT's libraries ends
_SECONDS_MAX = 600.0
_DONE = "installed"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie on the machine: `packages` is for PYTHONPATH, `libraries` for LD_LIBRARY_PATH."""

    folder: Path

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def libraries(self) -> Path:
        return self.folder / "libraries"

    @property
    def engines(self) -> Path:
        return self.folder / "engines"


def install(carried: Path, places: Places) -> dict[str, Any]:
    """Joins, compares and unpacks everything, unless exactly this was installed before.

    Raises:
        NotWhole: something is missing or damaged, or it was carried for another Python.
        OSError, subprocess.SubprocessError: it cannot be unpacked.
    """
    contents = Contents.read(carried)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if contents.python != here or platform.machine() != "x86_64":
        raise NotWhole(
            f"expected Python {contents.python} on x86_64, for which it was carried, found {here} on {platform.machine()}"
        )
    figures = {"files": len(contents.files), "mb": round(sum(one.size_bytes for one in contents.files.values()) / 1e6, 1)}
    done = places.folder / _DONE
    if done.is_file() and done.read_text(encoding="ascii") == contents.digest:
        return {**figures, "was_installed": True}
    wheels = places.folder / "wheels"
    for folder in (places.packages, places.libraries, wheels):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name, one in contents.files.items():
        join(carried, name, one, wheels / name)
    for jar in wheels.glob(f"*{LIBRARIES}"):
        _extract_libraries(jar, places.libraries)
    _install_wheels(sorted(wheels.glob("*.whl")), places.packages)
    shutil.rmtree(wheels)
    done.write_text(contents.digest, encoding="ascii")
    return {**figures, "was_installed": False}


def _extract_libraries(jar: Path, folder: Path) -> None:
    with zipfile.ZipFile(jar) as archive:
        for entry in archive.namelist():
            name = entry.rpartition("/")[2]
            if name.startswith("lib") and ".so." in name:
                with archive.open(entry) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)


def _install_wheels(wheels: list[Path], target: Path) -> None:
    """Raises: NotWhole: no pip was carried, or it refuses; its last lines are in the message."""
    pip = next((wheel for wheel in wheels if wheel.name.startswith("pip-")), None)
    if pip is None:
        raise NotWhole("expected pip's own wheel among what was carried, found none")
    # --target needs no ensurepip, which distributions leave out; --no-deps: the locks are complete.
    command = [sys.executable, f"{pip}/pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore", "--target", str(target)]
    packages = [str(wheel) for wheel in wheels if wheel is not pip]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=_SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise NotWhole(f"pip: exit code {done.returncode}: {'; '.join(done.stderr.strip().splitlines()[-3:])}")
