"""A server of covers that misbehaves as it is told: each path is a way of answering."""

import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.examples import a_jpeg_cover

Behaviour = Callable[[socket.socket], None]


class CoverServer:
    """Listens on a free port of loopback; `answers` maps a path to what is done with the connection."""

    def __init__(self) -> None:
        self.answers: dict[str, Behaviour] = {"/cover.jpg": an_answer(a_jpeg_cover())}
        self.requests: list[str] = []
        self.stopping = threading.Event()
        self._tls: ssl.SSLContext | None = None
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    outer._handle(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def wrap(self, context: ssl.SSLContext) -> None:
        """From now on connections are TLS."""
        self._tls = context

    def _handle(self, plain: socket.socket) -> None:
        connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
        with connection:
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            got = connection.recv(4096)
            if not got:
                return
            head += got
        path = head.split(b" ", 2)[1].decode()
        self.requests.append(path)
        self.answers.get(path, a_status(404))(connection)

    def url(self, path: str = "/cover.jpg", host: str = "covers.test") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def an_answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Behaviour:
    """A whole answer, with a Content-Length that may lie."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close", *headers]
    return lambda connection: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def a_status(code: int) -> Behaviour:
    """That status, and no body."""
    return an_answer(b"", status=f"{code} As Told")


def a_redirect(location: str) -> Behaviour:
    """On to another URL."""
    return an_answer(b"", f"Location: {location}", status="302 Found")


def in_drops(start: bytes, drop: bytes, *, every_s: float, until: threading.Event) -> Behaviour:
    """Sends a start at once and then drop by drop, until the server stops or the other side goes."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while not until.is_set():
            connection.sendall(drop)
            time.sleep(every_s)

    return answer


def a_reset(connection: socket.socket) -> None:
    """Closes with RST in place of an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
