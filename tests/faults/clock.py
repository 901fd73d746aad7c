"""A wall clock of one's own for the service: `clock.c`, preloaded, and the file that says how far it is off."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


def can_step() -> bool:
    """There is a C compiler, and a dynamic linker that preloads."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class WallClock:
    """`step(-3600)` sets it an hour back for every process started by `around`."""

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "clock.so", folder / "offset"
        self._offset.write_bytes(struct.pack("q", 0))
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, timeout=60)

    def step(self, seconds: int) -> None:
        """From now on it is off by so much."""
        with self._offset.open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack("q", seconds))

    def around(self, command: list[str]) -> list[str]:
        """The command, by this clock."""
        return ["env", f"LD_PRELOAD={self._library}", f"WALL_CLOCK_OFFSET={self._offset}", *command]
