"""What root may do on Debian: install packages, and make a base image from the mirror that this machine uses."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.infrastructure.commands import Stopwatch, run

SUITE = "trixie"  # Debian 13: the first with Java 21 and Redis 8


def is_root_on_debian() -> bool:
    os_release = Path("/etc/os-release")
    if os.name != "posix" or os.geteuid() != 0 or not os_release.exists():
        return False
    fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    return fields.get("ID", "").strip('"') == "debian" and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> None:
    """Raises: SetupError."""
    with Stopwatch(f"installing Debian's {', '.join(packages)}"):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-q", "update"], log_name="apt", timeout_seconds=180, env=env)
        install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages]
        run(install, log_name="apt", timeout_seconds=600, env=env)


def make_base(folder: Path) -> None:
    """A minimal Debian of `SUITE` in `folder`, with this machine's way to its mirror: proxies, checks and certificates.

    Raises: SetupError.
    """
    if shutil.which("debootstrap") is None:
        apt_install("debootstrap")
    with Stopwatch(f"making a base image of Debian {SUITE}"):
        mirror = _debian_mirror()
        argv = ["debootstrap", "--variant=minbase", SUITE, str(folder), *([mirror] if mirror else [])]
        run(argv, log_name="debootstrap", timeout_seconds=600)
    (folder / "etc/apt/apt.conf.d/99-host").write_text(_host_apt_settings())
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():  # a mirror behind https needs them before ca-certificates can be installed
        target = folder / "etc/ssl/certs/ca-certificates.crt"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(certificates, target)


def _debian_mirror() -> str | None:
    """The mirror this machine's apt uses for Debian's main archive; None leaves it to debootstrap's own default."""
    argv = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Identifier: Packages"]
    listed = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    mirrors = (line.split()[-1] for line in listed.stdout.splitlines() if line.startswith("Debian Debian "))
    return next(mirrors, None)


def _host_apt_settings() -> str:
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=60).stdout
    kept = ("Acquire::http::", "Acquire::https::", "Acquire::Check-")
    return "".join(f"{line}\n" for line in dumped.splitlines() if line.startswith(kept))
