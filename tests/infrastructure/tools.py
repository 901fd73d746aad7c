"""Programs that tests of the chart need and no package of Debian's has: from PATH, or built by Go into the cache."""

import os
import shutil
from pathlib import Path

from tests.infrastructure.commands import SetupError, Stopwatch, run, say
from tests.infrastructure.paths import cache_folder
from tests.infrastructure.versions import HELM

_MODULES = {"helm": f"helm.sh/helm/v3/cmd/helm@{HELM}"}


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


def _folder() -> Path:
    return cache_folder() / "bin"
