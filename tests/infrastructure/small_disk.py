"""A disk that is soon full: a file system in memory of a few megabytes, on which a broker keeps its data."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = bytes(65_536)


def can_mount() -> bool:
    """We are root, may mount, and the Docker engine, if any, is this machine's."""
    if os.geteuid() != 0 or "DOCKER_HOST" in os.environ:
        return False
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=30)
    return tried.returncode == 0


@contextmanager
def small_disk(size_mb: int) -> Iterator["SmallDisk"]:
    """Mounted until the end; what is on it is lost then, not before."""
    with tempfile.TemporaryDirectory(prefix="listing-enricher-disk-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=1777", "tmpfs", folder], check=True, timeout=30)
        try:
            yield SmallDisk(Path(folder))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


class SmallDisk:
    """`fill` leaves no byte free, `free` gives back what it took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """From here on every write to the disk fails with ENOSPC."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """There is room again."""
        self._ballast.unlink(missing_ok=True)
