"""Prometheus and promtool: those on PATH, or Debian's, unpacked into the cache. Not installed, which would start a server."""

import fcntl
import shutil
from pathlib import Path

from tests.infrastructure.commands import SetupError, Stopwatch, run
from tests.infrastructure.debian import is_root_on_debian
from tests.infrastructure.paths import cache_folder

PROGRAMS = ("prometheus", "promtool")


def find(program: str) -> str | None:
    """Where the program is, or None. Changes nothing."""
    unpacked = _folder() / "usr" / "bin" / program
    return str(unpacked) if unpacked.is_file() else shutil.which(program)


def fetch() -> None:
    """Afterwards `find` finds both, if that can be had here.

    Raises: SetupError.
    """
    with (cache_folder() / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(find(program) for program in PROGRAMS):
            return
        if not is_root_on_debian():
            raise SetupError("expected prometheus and promtool on PATH, or to be root on Debian, which has a package of them")
        partial = _folder().with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        partial.chmod(0o755)
        with Stopwatch("unpacking Debian's prometheus"):
            run(["apt-get", "-q", "update"], log_name="apt", timeout_seconds=180)
            # apt downloads as a user of its own, which may not write where root may
            download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
            run(download, log_name="apt", timeout_seconds=300, cwd=partial)
            for package in partial.glob("*.deb"):
                run(["dpkg-deb", "-x", str(package), str(partial)], log_name="apt", timeout_seconds=120)
                package.unlink()
        if not (partial / "usr" / "bin" / "promtool").is_file():
            raise SetupError(f"expected promtool in {partial}, found none")
        partial.rename(_folder())  # only what is whole gets the final name


def _folder() -> Path:
    return cache_folder() / "prometheus"
