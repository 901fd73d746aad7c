"""Where a cover may be fetched from: which URLs, and which addresses behind their hosts.

A listing's URL is a stranger's text, and this service runs inside a network: without these checks it would be that stranger's
browser there (server-side request forgery). So the host must be on the operator's list, its name is resolved once, every
address of the answer is checked, and the connection goes to a checked address itself. A name that resolves differently the
next moment (DNS rebinding) has no second question to answer.

Source: OWASP "Server-Side Request Forgery Prevention"; RFC 6890 (special addresses); RFC 6052 (NAT64); RFC 3056 (6to4).
"""

import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import local
from typing import Any
from urllib.parse import urlsplit

import httpcore2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

URL_CHARACTERS_MAX = 2_048
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII but the backslash, which browsers and parsers read differently
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")

# Nobody's cover lives there, whatever `allowed_networks` says: "this network", link-local, multicast, reserved, and where
# clouds hand out credentials (AWS, Google, Alibaba; Azure's has a public address).
_NEVER = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "100.100.100.200/32"),
        *("::/128", "fe80::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32"),
    )
]
_GLOBAL_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class Missing(StrEnum):
    """Why a cover could not be had; the label of a metric."""

    URL = "url"
    HOST = "host"
    ADDRESS = "address"
    DNS = "dns"
    CONNECTION = "connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    STATUS = "status"
    REDIRECT = "redirect"
    ENCODING = "encoding"
    TOO_LARGE = "too_large"
    PROTOCOL = "protocol"
    NOT_AN_IMAGE = "not_an_image"
    HOST_RESTS = "host_rests"


class CoverMissing(Exception):
    """The cover cannot be had; the message says why, and does not show the URL, which may carry a signature."""

    def __init__(self, reason: Missing, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed: lower-case host without its last dot, the port, and path with query."""

    scheme: str
    host: str
    port: int
    path: str

    def as_url(self) -> httpcore2.URL:
        """For the client, in parts: nothing is parsed a second time, and perhaps differently."""
        return httpcore2.URL(scheme=self.scheme, host=self.host, port=self.port, target=self.path)


def read_url(text: str, allowed_hosts: Iterable[str]) -> Target:
    """The URL's parts, once its form and its host are those that the settings allow.

    Args:
        allowed_hosts: `host`, `host:port` or `*.host`, which is its subdomains; without a port, the scheme's own.

    Raises:
        CoverMissing: URL or HOST.
    """
    if len(text) > URL_CHARACTERS_MAX or not _URL.fullmatch(text):
        raise CoverMissing(Missing.URL, f"expected at most {URL_CHARACTERS_MAX} printable ASCII characters, no backslash")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise CoverMissing(Missing.URL, "expected a URL, found something that cannot be read as one") from error
    if parts.scheme not in _PORTS:
        raise CoverMissing(Missing.URL, f"expected http or https, found {parts.scheme[:20]!r}")
    if "@" in parts.netloc:
        raise CoverMissing(Missing.URL, "expected no user name in the URL, found one")
    host = (parts.hostname or "").removesuffix(".")
    if not _HOST.fullmatch(host) and not _is_v6(host):
        raise CoverMissing(Missing.URL, "expected a host name or an address, found something else")
    usual = _PORTS[parts.scheme]
    target = Target(
        parts.scheme, host, usual if port is None else port, (parts.path or "/") + (f"?{parts.query}" * bool(parts.query))
    )
    if not any(_allows(entry.lower(), target, usual) for entry in allowed_hosts):
        raise CoverMissing(Missing.HOST, f"{host[:80]}:{target.port} is not in covers.allowed_hosts")
    return target


def _is_v6(host: str) -> bool:
    try:
        return isinstance(ip_address(host), IPv6Address)
    except ValueError:
        return False


def _allows(entry: str, target: Target, usual_port: int) -> bool:
    name, port = entry, str(usual_port)
    found = re.fullmatch(r"(.+):([0-9]{1,5})", entry)
    if found and (entry.startswith("[") or ":" not in found[1]):  # else it is an IPv6 address without a port
        name, port = found[1], found[2]
    if str(target.port) != port:
        return False
    if name.startswith("*."):
        return target.host.endswith(name[1:])
    return target.host == name.strip("[]")


def refuse_address(text: str, allowed_networks: Iterable[Network]) -> None:
    """Passes public addresses, and private ones of `allowed_networks`. An IPv4 address inside an IPv6 one counts as itself.

    Raises:
        CoverMissing: ADDRESS.
    """
    address = _innermost(ip_address(text.partition("%")[0]))
    allowed = any(address in network for network in allowed_networks if network.version == address.version)
    if any(address in network for network in _NEVER) or not (allowed or _is_public(address)):
        raise CoverMissing(Missing.ADDRESS, f"{text} is no public address, and not in covers.allowed_networks")


def _innermost(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, by the system's resolver, which has time limits of its own. Raises: OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to checked addresses only, and within the deadline of the thread that asks.

    A fetch runs on one thread, so the thread's deadline is the fetch's: it holds over all reads together, where the client's
    own timeouts begin anew with each (a server that sends a byte a second would never be late).
    """

    def __init__(self, allowed_networks: Sequence[Network], resolver: Resolver) -> None:
        self._allowed_networks = allowed_networks
        self._resolve = resolver
        self._plain = httpcore2.SyncBackend()
        self._thread = local()

    def set_deadline(self, *, connect_s: float, total_s: float) -> None:
        """Both on the clock of `time.monotonic`, for connections and streams that this thread uses from now on."""
        self._thread.connect_s, self._thread.total_s = connect_s, total_s

    def remaining_s(self, *, connecting: bool = False) -> float:
        """Raises: CoverMissing: TIMEOUT, when nothing remains."""
        end_s: float = min(self._thread.connect_s, self._thread.total_s) if connecting else self._thread.total_s
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise CoverMissing(Missing.TIMEOUT, "not there within covers.timeout_ms")
        return left_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Raises: CoverMissing: DNS, ADDRESS, CONNECTION or TIMEOUT."""
        try:
            addresses = list(dict.fromkeys(self._resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise CoverMissing(Missing.DNS, f"{host[:80]} has no address: {error}") from error
        for address in addresses:  # all of them: an answer that mixes public and private addresses is an attack
            refuse_address(address, self._allowed_networks)
        reason = f"{host[:80]} has no address"
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                stream = self._plain.connect_tcp(address, port, self.remaining_s(connecting=True) / left)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                reason = f"{address}:{port}: {error or type(error).__name__}"
                continue
            return _Stream(self, self._checked_peer(stream))
        raise CoverMissing(Missing.CONNECTION if addresses else Missing.DNS, reason)

    def _checked_peer(self, stream: httpcore2.NetworkStream) -> httpcore2.NetworkStream:
        try:
            refuse_address(stream.get_extra_info("server_addr")[0], self._allowed_networks)
        except CoverMissing:
            stream.close()
            raise
        return stream


class _Stream(httpcore2.NetworkStream):
    """A stream whose every operation ends with its thread's deadline."""

    def __init__(self, network: CheckedNetwork, stream: httpcore2.NetworkStream) -> None:
        self._network = network
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.remaining_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._network.remaining_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        try:
            left_s = self._network.remaining_s(connecting=True)
        except CoverMissing:
            self.close()
            raise
        return _Stream(self._network, self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
