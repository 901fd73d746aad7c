"""A server of covers that misbehaves as it is told: each path is a way of answering. And a fetcher that asks it."""

import datetime
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consumer.cover_fetch import CoverFetcher, Pixels
from consumer.settings import CoverSettings
from consumer.telemetry import Metrics
from model.cover import decode_cover
from tests.examples import a_jpeg_cover
from tests.fake_model import SMALL_COVERS

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


def a_certificate(folder: Any, host: str) -> Any:
    """A self-signed certificate and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "covers.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Fetching:
    """A fetcher with what it counted. Every name of `.test` leads to loopback, unless `addresses` says otherwise."""

    def __init__(self, server: CoverServer, *, ssl_context: ssl.SSLContext | None = None, **settings: Any) -> None:
        self.metrics = Metrics()
        self.asked: list[str] = []
        self.addresses: dict[str, list[Sequence[str]]] = {}
        hosts = [f"covers.test:{server.port}", f"other.test:{server.port}", f"dead.test:{server.port}", "covers.test"]
        defaults = {"fetch": True, "allowed_hosts": hosts, "allowed_networks": ["127.0.0.0/8"], "timeout_ms": 5_000}
        read = CoverSettings.model_validate(defaults | settings)
        self.fetcher = CoverFetcher(
            read, decode=self._decode, metrics=self.metrics, resolver=self._resolve, ssl_context=ssl_context
        )

    def _decode(self, data: bytes) -> Pixels:
        return decode_cover(data, SMALL_COVERS)

    def _resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.addresses.get(host, [["127.0.0.1"]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def counted(self) -> dict[str, int]:
        """Result to how often."""
        samples = [sample for metric in self.metrics.cover_fetches.collect() for sample in metric.samples]
        return {one.labels["result"]: int(one.value) for one in samples if one.name.endswith("_total") and one.value}
