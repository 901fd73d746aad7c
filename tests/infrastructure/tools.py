"""What tests of the chart need and no package of Debian's has, by Go: programs, built into the cache, and modules' files."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.infrastructure.commands import SetupError, Stopwatch, run, say
from tests.infrastructure.paths import cache_folder
from tests.infrastructure.versions import HELM, KUBECONFORM

_MODULES = {
    "helm": f"helm.sh/helm/v3/cmd/helm@{HELM}",
    "kubeconform": f"github.com/yannh/kubeconform/cmd/kubeconform@{KUBECONFORM}",
}


def find(program: str) -> Path | None:
    """Where it is; None when neither PATH nor the cache has it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{_folder()}")
    return Path(found) if found else None


def install() -> None:
    """Builds what is missing; what cannot be built is said, and its tests are skipped with that reason."""
    for program, module in _MODULES.items():
        if find(program) is not None:
            continue
        try:
            with Stopwatch(f"building {module} with Go"):
                argv = ["go", "install", module]
                run(argv, log_name=program, timeout_seconds=1_800, env={**os.environ, "GOBIN": str(_folder())})
        except SetupError as failed:
            say(f"{program}: {failed}")


def module_folder(module: str) -> Path | None:
    """The files of `path@version`, in Go's own cache; None where they cannot be had."""
    argv = ["go", "mod", "download", "-json", module]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, "GOFLAGS": "-mod=mod"})
    except FileNotFoundError:
        return None
    return Path(json.loads(done.stdout)["Dir"]) if done.returncode == 0 else None


def _folder() -> Path:
    return cache_folder() / "bin"
