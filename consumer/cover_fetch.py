"""Covers by URL: fetched in parallel, within one deadline a batch, and never needed.

**What it costs.** Answers leave in the order in which their records came, so a batch waits for its covers, and those behind it
wait with it: at most `covers.timeout_ms` a batch, however many URLs it has. What is not there by then is missing, the listing is
answered without it, and its next change tries again. A batch without URLs waits for nothing. A host that keeps failing rests: its
covers are missing at once.

What comes is a stranger's, as with `covers`: `cover_address` says where from, here is how much and how long. Nothing is
unpacked on the way (`Accept-Encoding: identity`), bytes are counted as they come, and what an image is its bytes say.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from ssl import SSLContext, SSLError
from threading import BoundedSemaphore, Lock
from urllib.parse import urljoin, urlsplit

import httpcore2
import numpy as np
import structlog
from numpy.typing import NDArray

from consumer.cover_address import CheckedNetwork, CoverMissing, Missing, Resolver, Target, read_url, resolve
from consumer.settings import CoverSettings
from consumer.telemetry import Metrics
from model.features import InvalidCover

log = structlog.get_logger(__name__)

Pixels = NDArray[np.uint8]

REDIRECTS_MAX = 3
MAX_AGE_S = 3_600.0  # a cover at the same URL is looked at again after this
MISSING_AGE_S = 30.0
FAILURES_BEFORE_REST = 3
REST_S_FIRST, REST_S_MAX = 5.0, 60.0
KEEP_ALIVE_S = 15.0
DECODING_MAX = 2  # the worst image that is accepted takes about 200 MB while it is decoded
_HOSTS_MAX = 1_000
_ENTRY_BYTES = 300  # what Python holds of a cache entry beside the URL and the pixels
_HEADERS = [("Accept", "image/jpeg, image/png, image/webp"), ("Accept-Encoding", "identity"), ("User-Agent", "listing-enricher")]
_BLAMES_HOST = frozenset({Missing.DNS, Missing.CONNECTION, Missing.TLS, Missing.TIMEOUT})
_ANSWERED = frozenset({Missing.STATUS, Missing.REDIRECT, Missing.ENCODING, Missing.TOO_LARGE})  # not well, but in time


class CoverFetcher:
    """Fetches, decodes and remembers covers. Safe to share between threads; `close` ends its own.

    Args:
        decode: an image's bytes to the model's pixels; raises InvalidCover.
        resolver: host and port to addresses; raises OSError.
        ssl_context: None trusts the system's certificates.
    """

    def __init__(
        self,
        settings: CoverSettings,
        *,
        decode: Callable[[bytes], Pixels],
        metrics: Metrics,
        resolver: Resolver = resolve,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._timeout_s = settings.timeout_ms / 1000
        self._decode = decode
        self._metrics = metrics
        self._network = CheckedNetwork(settings.allowed_networks, resolver)
        self._client = httpcore2.ConnectionPool(
            ssl_context=ssl_context or httpcore2.default_ssl_context(),
            max_connections=settings.max_connections,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=self._network,
        )
        self._threads = ThreadPoolExecutor(settings.max_connections, thread_name_prefix="covers")
        self._decoding = BoundedSemaphore(DECODING_MAX)
        self._cache = _Cache(settings.cache_bytes)
        self._hosts = _Hosts()

    def fetch(self, urls: Iterable[str], *, may_wait: bool = True) -> dict[str, Pixels]:
        """The covers that could be had, by URL; those that are missing are counted by reason.

        Blocks for `covers.timeout_ms` at most, or not at all with `may_wait=False`: then only what is in the cache is there.

        Returns:
            uint8 [channels, height, width] for each URL that has one.
        """
        wanted = list(dict.fromkeys(urls))
        if not wanted:
            return {}
        with self._metrics.stage("covers"):
            return self._fetch(wanted, may_wait=may_wait)

    def _fetch(self, urls: list[str], *, may_wait: bool) -> dict[str, Pixels]:
        now_s = time.monotonic()
        found: dict[str, Pixels] = {}
        under_way: list[tuple[_Fetch, Future[_Fetched]]] = []
        for url in urls:
            known = self._cache.get(url, now_s=now_s)
            if known is None and may_wait:
                one = _Fetch(url, _host_of(url), now_s + self._timeout_s)
                under_way.append((one, self._threads.submit(self._load, one)))
                continue
            self._metrics.cover_fetches.labels("cached" if known else Missing.TIMEOUT).inc()
            if known is not None and known.pixels is not None:
                found[url] = known.pixels
        wait([future for _, future in under_way], timeout=self._timeout_s)
        for one, future in under_way:
            fetched = self._result(one, future)
            self._metrics.cover_fetches.labels(fetched.result).inc()
            if fetched.pixels is not None:
                found[one.url] = fetched.pixels
        return found

    def _result(self, one: "_Fetch", future: "Future[_Fetched]") -> "_Fetched":
        if future.done():
            return future.result()
        if not future.cancel():  # its thread will notice too, but not soon if it asks a resolver, which cannot be interrupted
            self._blame(one, Missing.TIMEOUT)
        return _Fetched(None, Missing.TIMEOUT)

    def _load(self, one: "_Fetch") -> "_Fetched":
        """One cover, on a thread of the pool; does not raise for what the other side did."""
        one.began_s = time.monotonic()
        if self._hosts.rests(one.host, now_s=one.began_s):
            return _Fetched(None, Missing.HOST_RESTS)
        # Half of the time to connect: threads that wait for a dead host come free for the others' covers.
        self._network.set_deadline(connect_s=one.began_s + self._timeout_s / 2, total_s=one.deadline_s)
        try:
            data = self._follow(one.url)
            self._hosts.answered(one.host)
            fetched = _Fetched(self._pixels(data), "fetched")
        except InvalidCover as error:
            fetched = self._missing(one, Missing.NOT_AN_IMAGE, str(error))
        except CoverMissing as error:
            fetched = self._missing(one, error.reason, str(error))
        age_s = MISSING_AGE_S if fetched.pixels is None else MAX_AGE_S
        self._cache.put(one.url, fetched.pixels, expires_s=time.monotonic() + age_s)
        return fetched

    def _missing(self, one: "_Fetch", reason: Missing, message: str) -> "_Fetched":
        log.info("cover_missing", host=one.host[:80], reason=reason.value, detail=message)
        if reason in _ANSWERED:
            self._hosts.answered(one.host)
        self._blame(one, reason)
        return _Fetched(None, reason)

    def _blame(self, one: "_Fetch", reason: Missing) -> None:
        """Counts a failure against the host, once; not where it was late because others came first and left little time."""
        had_time = reason is not Missing.TIMEOUT or one.deadline_s - one.began_s >= self._timeout_s / 2
        if reason in _BLAMES_HOST and had_time and not one.blamed:
            one.blamed = True
            self._hosts.failed(one.host, now_s=time.monotonic())

    def _pixels(self, data: bytes) -> Pixels:
        """Raises: InvalidCover; CoverMissing: TIMEOUT."""
        if not self._decoding.acquire(timeout=self._network.remaining_s()):
            raise CoverMissing(Missing.TIMEOUT, "the covers before it took long to decode")
        try:
            return self._decode(data)
        finally:
            self._decoding.release()

    def _follow(self, url: str) -> bytes:
        """Raises: CoverMissing."""
        target = read_url(url, self._settings.allowed_hosts)
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._get(target)
            if isinstance(answer, bytes):
                return answer
            url = _joined(url, answer.location)
            secure = target.scheme == "https"
            target = read_url(url, self._settings.allowed_hosts)
            if secure and target.scheme != "https":
                raise CoverMissing(Missing.REDIRECT, "expected a redirect to https, found one to http")
        raise CoverMissing(Missing.REDIRECT, f"more than {REDIRECTS_MAX} redirects")

    def _get(self, target: Target) -> "bytes | _Redirect":
        try:
            # The pool's own wait needs a limit too; reads, writes and connects have the thread's.
            extensions = {"timeout": {"pool": self._network.remaining_s()}}
            with self._client.stream("GET", target.as_url(), headers=_HEADERS, extensions=extensions) as response:
                return self._read(response)
        except httpcore2.TimeoutException as error:
            raise CoverMissing(Missing.TIMEOUT, "not there within covers.timeout_ms") from error
        except httpcore2.NetworkError as error:
            tls = any(isinstance(one, SSLError) for one in error.args)  # the pool drops the cause
            raise CoverMissing(Missing.TLS if tls else Missing.CONNECTION, str(error) or type(error).__name__) from error
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            raise CoverMissing(Missing.PROTOCOL, str(error)[:200]) from error

    def _read(self, response: httpcore2.Response) -> "bytes | _Redirect":
        headers = [(name.lower(), value) for name, value in response.headers]
        if response.status in (301, 302, 303, 307, 308):
            location = next((value for name, value in headers if name == b"location"), b"")
            return _Redirect(location.decode("latin-1"))
        if response.status != 200:
            raise CoverMissing(Missing.STATUS, f"expected status 200, found {response.status}")
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise CoverMissing(Missing.ENCODING, f"expected no Content-Encoding, found {value[:40]!r}")
        body = bytearray()
        for chunk in response.iter_stream():  # Content-Length may lie: what counts is what comes
            body += chunk
            if len(body) > self._settings.max_bytes:
                raise CoverMissing(Missing.TOO_LARGE, f"more than {self._settings.max_bytes} bytes (covers.max_bytes)")
        return bytes(body)

    def close(self) -> None:
        """Waits for the fetches under way, each of which has its deadline, and closes the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()


@dataclass(slots=True)
class _Fetch:
    """A fetch under way. `deadline_s` and `began_s` are of `time.monotonic`."""

    url: str
    host: str
    deadline_s: float
    began_s: float = math.inf
    blamed: bool = False


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a fetch came to; `result` is the metric's label."""

    pixels: Pixels | None
    result: str


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise CoverMissing(Missing.REDIRECT, "expected a URL in Location, found something that cannot be read as one") from error


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a URL led to: pixels, or None where the cover is missing."""

    pixels: Pixels | None
    expires_s: float


class _Cache:
    """Covers by URL, the least recently used leave first. Pixels are kept, not files: smaller, and decoded once."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = Lock()

    def get(self, url: str, *, now_s: float) -> _Known | None:
        with self._lock:
            known = self._known.get(url)
            if known is None or known.expires_s <= now_s:
                return None
            self._known.move_to_end(url)
            return known

    def put(self, url: str, pixels: Pixels | None, *, expires_s: float) -> None:
        with self._lock:
            if former := self._known.pop(url, None):
                self._bytes -= _size(url, former)
            self._known[url] = _Known(pixels, expires_s)
            self._bytes += _size(url, self._known[url])
            while self._bytes > self._bytes_max:
                self._bytes -= _size(*self._known.popitem(last=False))


def _size(url: str, known: _Known) -> int:
    return _ENTRY_BYTES + len(url) + (0 if known.pixels is None else known.pixels.nbytes)


@dataclass(slots=True)
class _Failing:
    failures: int = 0
    until_s: float = 0.0


class _Hosts:
    """Which hosts rest, because they failed several times in a row; each failure after a rest doubles the next one."""

    def __init__(self) -> None:
        self._failing: OrderedDict[str, _Failing] = OrderedDict()
        self._lock = Lock()

    def rests(self, host: str, *, now_s: float) -> bool:
        with self._lock:
            failing = self._failing.get(host)
            return failing is not None and now_s < failing.until_s

    def failed(self, host: str, *, now_s: float) -> None:
        with self._lock:
            failing = self._failing.setdefault(host, _Failing())
            self._failing.move_to_end(host)
            if now_s < failing.until_s:
                return  # it rests already: fetches that began before it did end now
            failing.failures += 1
            if failing.failures >= FAILURES_BEFORE_REST:
                rest_s = min(REST_S_MAX, REST_S_FIRST * 2 ** min(10, failing.failures - FAILURES_BEFORE_REST))
                failing.until_s = now_s + rest_s
            if len(self._failing) > _HOSTS_MAX:
                self._failing.popitem(last=False)

    def answered(self, host: str) -> None:
        with self._lock:
            self._failing.pop(host, None)
