"""The wire between the service and a server, in the test's hands: it can be cut, without either side being told, and slowed.

`Wire` is a proxy. `isolated` is a command that runs the service where its only network are such wires: a network namespace of its
own whose loopback has the servers' ports, each led outside through a Unix socket. So an advertised address stays what it is.
"""

import ctypes
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CHUNK = 65_536
_SIOCSIFFLAGS = 0x8914
_UP = 1
_PR_SET_PDEATHSIG = 1
_PORT = re.compile(r":(\d+)")


class Wire:
    """Leads connections to `port` of loopback. Use as a context manager.

    Args:
        port: of the server.
        path: Unix socket to listen on; None listens on a free port of loopback.
        delay_s: how long each request (what came in one piece) is held up on its way there.
    """

    def __init__(self, port: int, *, path: Path | None = None, delay_s: float = 0.0) -> None:
        self._target, self._delay_s = port, delay_s
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(str(path) if path else ("127.0.0.1", 0))
        self._listener.listen(64)
        self.port: int = 0 if path else self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *about: object) -> None:
        self._whole.set()
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in (self._listener, *self._open):
            one.close()

    def cut(self) -> None:
        """Nothing gets through any more, in neither direction; connections stay open, and new ones hang."""
        self._whole.clear()

    def mend(self) -> None:
        """What was held up gets through now."""
        self._whole.set()

    def lead_to(self, port: int) -> None:
        """New connections go to another server, as when a name's address has changed; those that are open stay."""
        self._target = port

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                self._run(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        self._whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.shutdown(socket.SHUT_RDWR)
            return
        self._open.append(far)
        self._run(_pump, far, near, self._whole, 0.0)
        _pump(near, far, self._whole, self._delay_s)


def _pump(source: socket.socket, sink: socket.socket, whole: threading.Event, delay_s: float) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            whole.wait()
            time.sleep(delay_s)
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def port_of(address: str) -> int:
    """Of `host:port` or a URL with that."""
    found = _PORT.search(address.rpartition("@")[2])
    assert found is not None
    return int(found[1])


def can_isolate() -> bool:
    """Whether this user may make network namespaces."""
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


def isolated(sockets: Path, ports: list[int], command: list[str]) -> list[str]:
    """The command that runs `command` with nothing but wires: for each port a `Wire` listens on `sockets/<port>`."""
    return ["unshare", "-n", sys.executable, "-m", "tests.faults.wire", str(sockets), ",".join(map(str, ports)), *command]


def main() -> None:
    """Inside the namespace: a child leads the ports outside, this process becomes the service."""
    sockets, ports, command = Path(sys.argv[1]), [int(one) for one in sys.argv[2].split(",")], sys.argv[3:]
    with socket.socket() as plain:
        fcntl.ioctl(plain, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))
    listeners = {port: socket.create_server(("127.0.0.1", port), backlog=64) for port in ports}
    if os.fork():
        os.execvp(command[0], command)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    through = threading.Event()
    through.set()

    def lead(port: int) -> None:
        while True:
            near, _ = listeners[port].accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(sockets / str(port)))
            threading.Thread(target=_pump, args=(far, near, through, 0.0), daemon=True).start()
            threading.Thread(target=_pump, args=(near, far, through, 0.0), daemon=True).start()

    for port in ports:
        threading.Thread(target=lead, args=(port,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
