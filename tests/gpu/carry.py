"""What a machine with a GPU and no network needs, made on one with a network: `python -m tests.gpu carry`.

The wheels of the demo's and the GPU's lock for the Python there, pip itself, pycuda compiled against CUDA's headers (its own
distribution is source), and the real TensorRT with the resources to build engines.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.gpu.carried import Contents, split_all
from tests.infrastructure import versions
from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.tensorrt import fetch_redist
from tests.software_cuda.build import pycuda_environment

TENSORRT = "10.6"  # the only version whose libraries at hand can build engines for every GPU
_WHEELS_TIMEOUT_S = 1800
_LOCKS = Path("requirements")
_NOT_FROM_THE_LOCK = ("tensorrt", "pycuda")  # the lock's TensorRT gets its libraries from elsewhere


def carry(target: Path, *, python: str, part_bytes: int) -> Contents:
    """Fills an empty folder, split into parts.

    Args:
        python: the interpreter of the version that the other machine has: "3.12", or a path.

    Raises:
        SetupError: the folder is not empty, or something cannot be had.
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise SetupError(f"{target}: expected an empty folder")
    bindings, artifact = versions.TENSORRT[TENSORRT]
    with tempfile.TemporaryDirectory(prefix="carry-") as name:
        folder = Path(name)
        interpreter = _interpreter(folder / "python", python)
        version = subprocess.run(
            [str(interpreter), "-c", "import sys; print('{}.{}'.format(*sys.version_info))"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()  # fmt: skip
        gpu = folder / "gpu.txt"
        gpu.write_text(without(_LOCKS.joinpath("gpu.txt").read_text(encoding="utf-8"), _NOT_FROM_THE_LOCK), encoding="utf-8")
        with Stopwatch(f"wheels for Python {version}"):
            for lock in (_LOCKS / "demo.txt", gpu):
                _wheels(interpreter, target, ["--require-hashes", "-r", str(lock)])
            _wheels(interpreter, target, [bindings, "pip"])
        with Stopwatch(f"compiling pycuda {versions.PYCUDA} (1 to 5 minutes)"):
            wanted = ["--no-cache-dir", "--no-binary", "pycuda", f"pycuda=={versions.PYCUDA}"]
            _wheels(interpreter, target, wanted, env=pycuda_environment(folder / "home"))
        with Stopwatch(f"TensorRT {TENSORRT} (1.1 GB)"):
            fetch_redist(artifact, target)
    with Stopwatch("splitting"):
        return split_all(target, python=version, part_bytes=part_bytes)


def without(lock: str, names: tuple[str, ...]) -> str:
    """A lock without the requirements whose names begin so. A requirement begins in the first column, its hashes do not."""
    requirements = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(one for one in requirements if not one.startswith(names))


def _interpreter(folder: Path, python: str) -> Path:
    """One with pip, so that what is fetched fits the version there. Raises: SetupError."""
    uv = shutil.which("uv") or str(Path(".tools/bin/uv").resolve())
    run([uv, "venv", "--quiet", "--seed", "--python", python, str(folder)], log_name="carry", timeout_seconds=300)
    return folder / "bin" / "python"


def _wheels(interpreter: Path, target: Path, wanted: list[str], *, env: Mapping[str, str] | None = None) -> None:
    command = [str(interpreter), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), *wanted]
    run(command, log_name="carry", timeout_seconds=_WHEELS_TIMEOUT_S, env=env or dict(os.environ))


def main(target: Path, *, python: str, part_mb: int) -> int:
    """Carries and says how much it is."""
    try:
        contents = carry(target, python=python, part_bytes=part_mb * 1_000_000)
    except (SetupError, OSError, subprocess.SubprocessError) as error:
        print(f"carry: {error}", file=sys.stderr)
        return 1
    size = sum(one.size_bytes for one in contents.files.values())
    parts = sum(max(1, one.parts) for one in contents.files.values())
    print(f"{target}: {len(contents.files)} files, {size / 1e6:,.0f} MB, as {parts + 1} files of at most {part_mb} MB")
    return 0
