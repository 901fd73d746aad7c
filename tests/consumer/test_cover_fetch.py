"""Covers by URL: what a stranger's server may do, and what it must never reach."""

import gzip
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpcore2
import numpy as np
import pytest

from consumer.cover_address import CheckedNetwork, CoverMissing, Missing
from consumer.cover_fetch import Pixels
from model.cover import decode_cover
from tests.consumer.cover_server import CoverServer, Fetching, a_certificate, a_redirect, a_reset, a_status, an_answer, in_drops
from tests.examples import a_jpeg_cover, a_truncated_jpeg
from tests.fake_model import SMALL_COVERS


@pytest.fixture
def server() -> Iterator[CoverServer]:
    made = CoverServer()
    yield made
    made.close()


@pytest.fixture
def fetching(server: CoverServer) -> Iterator[Callable[..., Fetching]]:
    made: list[Fetching] = []

    def make(**settings: Any) -> Fetching:
        made.append(Fetching(server, **settings))
        return made[-1]

    yield make
    server.stopping.set()
    for one in made:
        one.fetcher.close()


MakeFetching = Callable[..., Fetching]


def reason_of(one: Fetching, url: str) -> str:
    """Why this URL's cover is missing."""
    assert one.fetcher.fetch([url]) == {}
    (reason,) = one.counted()
    return reason


# ── what comes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cover_is_fetched_and_decoded(server: CoverServer, fetching: MakeFetching) -> None:
    """A cover at an allowed host becomes the same pixels as its bytes would."""
    one = fetching()
    found = one.fetcher.fetch([server.url()])
    assert np.array_equal(found[server.url()], decode_cover(a_jpeg_cover(), SMALL_COVERS))
    assert one.counted() == {"fetched": 1}


def test_a_cover_is_fetched_once(server: CoverServer, fetching: MakeFetching) -> None:
    """The second batch that names a URL takes it from the cache; so does one that must not wait."""
    one = fetching()
    first = one.fetcher.fetch([server.url(), server.url()])
    assert np.array_equal(one.fetcher.fetch([server.url()], may_wait=False)[server.url()], first[server.url()])
    assert server.requests == ["/cover.jpg"]
    assert one.counted() == {"fetched": 1, "cached": 1}


def test_a_missing_cover_is_remembered_too(server: CoverServer, fetching: MakeFetching) -> None:
    """A 404 is not asked for again in the next batch."""
    one = fetching()
    for _ in range(2):
        assert one.fetcher.fetch([server.url("/gone")]) == {}
    assert server.requests == ["/gone"]


def test_the_cache_is_bounded(server: CoverServer, fetching: MakeFetching) -> None:
    """With no room for an entry, each batch fetches anew."""
    one = fetching(cache_bytes=100)
    for _ in range(2):
        assert server.url() in one.fetcher.fetch([server.url()])
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (a_status(404), Missing.STATUS),
        (a_status(500), Missing.STATUS),
        (a_status(204), Missing.STATUS),
        (a_reset, Missing.CONNECTION),
        (an_answer(b"<html>", "Content-Type: image/jpeg"), Missing.NOT_AN_IMAGE),
        (an_answer(a_truncated_jpeg(), "Content-Type: image/jpeg"), Missing.NOT_AN_IMAGE),
        (an_answer(b""), Missing.NOT_AN_IMAGE),
        (an_answer(gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"), Missing.ENCODING),
        (an_answer(a_jpeg_cover(), length=10), Missing.NOT_AN_IMAGE),
        (an_answer(a_jpeg_cover(), length=100_000), Missing.PROTOCOL),
        (an_answer(bytes(20_000)), Missing.TOO_LARGE),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"), Missing.PROTOCOL),
    ],
)
def test_a_wrong_answer_is_a_missing_cover(server: CoverServer, fetching: MakeFetching, behaviour: Any, reason: str) -> None:
    """Whatever is no whole image with status 200 is missing, and the metric says why."""
    server.answers["/it"] = behaviour
    assert reason_of(fetching(max_bytes=10_000), server.url("/it")) == reason


def test_the_bytes_decide_what_an_image_is(server: CoverServer, fetching: MakeFetching) -> None:
    """A JPEG that is called text is a cover all the same."""
    server.answers["/it"] = an_answer(a_jpeg_cover(), "Content-Type: text/html")
    assert server.url("/it") in fetching().fetcher.fetch([server.url("/it")])


@pytest.mark.parametrize(
    ("start", "drop", "every_s"),
    [
        (b"", b"", 0.05),  # nothing at all
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.05),  # headers without end
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"\xff", 0.05),  # a slow loris
    ],
)
def test_a_slow_answer_ends_with_the_deadline(
    server: CoverServer, fetching: MakeFetching, start: bytes, drop: bytes, every_s: float
) -> None:
    """However it dawdles, a server costs no more than covers.timeout_ms, and the connection is given up."""
    server.answers["/it"] = in_drops(start, drop, every_s=every_s, until=server.stopping)
    one = fetching(timeout_ms=400)
    began_s = time.monotonic()
    assert reason_of(one, server.url("/it")) == Missing.TIMEOUT
    one.fetcher.close()
    assert 0.35 < time.monotonic() - began_s < 1.5


def test_an_endless_body_ends_at_the_limit(server: CoverServer, fetching: MakeFetching) -> None:
    """Bytes are counted as they come: a body without end is given up at covers.max_bytes."""
    start = b"HTTP/1.1 200 OK\r\n\r\n"
    server.answers["/it"] = in_drops(start, bytes(60_000), every_s=0, until=server.stopping)
    assert reason_of(fetching(max_bytes=1_000_000), server.url("/it")) == Missing.TOO_LARGE


# ── where it may go ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["::ffff:10.0.0.1"]])
def test_every_address_of_a_name_is_checked(server: CoverServer, fetching: MakeFetching, answer: list[str]) -> None:
    """One address that is not public refuses the whole answer, and nothing is connected to."""
    one = fetching()
    one.addresses["covers.test"] = [answer]
    assert reason_of(one, server.url()) == Missing.ADDRESS
    assert server.requests == []


def test_a_name_is_resolved_once_a_connection(server: CoverServer, fetching: MakeFetching) -> None:
    """The connection goes to the address that was checked: a resolver that says something else next is not asked (rebinding)."""
    one = fetching()
    one.addresses["covers.test"] = [["127.0.0.1"], ["169.254.169.254"]]
    assert server.url() in one.fetcher.fetch([server.url()])
    assert one.asked == ["covers.test"]


def test_the_peer_of_a_connection_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the network made of the address: a connection that stands to a private one is closed."""
    closed: list[bool] = []

    class Elsewhere(httpcore2.NetworkStream):
        def get_extra_info(self, info: str) -> Any:
            return ("10.0.0.1", 80) if info == "server_addr" else None

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", lambda *_: Elsewhere())
    network = CheckedNetwork([], lambda host, port: ["8.8.8.8"])
    network.set_deadline(connect_s=math.inf, total_s=math.inf)
    with pytest.raises(CoverMissing) as caught:
        network.connect_tcp("covers.test", 80)
    assert (caught.value.reason, closed) == (Missing.ADDRESS, [True])


def test_a_name_without_address_is_a_missing_cover(server: CoverServer, fetching: MakeFetching) -> None:
    """So is one whose answer is empty."""
    one = fetching()
    one.addresses["covers.test"] = [[]]
    assert reason_of(one, server.url()) == Missing.DNS


def test_the_first_address_that_answers_is_taken(server: CoverServer, fetching: MakeFetching) -> None:
    """A refused connection leads to the next checked address."""
    one = fetching()
    one.addresses["covers.test"] = [["127.9.9.9", "127.0.0.1"]]
    assert server.url() in one.fetcher.fetch([server.url()])


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1/", Missing.HOST),
        ("http://169.254.169.254/latest/meta-data/", Missing.HOST),
        ("http://evil.test/", Missing.HOST),
        ("file:///etc/passwd", Missing.URL),
        ("http://covers.test@evil.test/", Missing.URL),
        ("http://[", Missing.REDIRECT),
        ("/it", Missing.REDIRECT),
        ("", Missing.REDIRECT),
    ],
)
def test_a_redirect_is_checked_like_the_url(server: CoverServer, fetching: MakeFetching, location: str, reason: str) -> None:
    """Each hop has to pass, and three are followed: a loop ends."""
    server.answers["/it"] = a_redirect(location)
    assert reason_of(fetching(), server.url("/it")) == reason
    assert len(server.requests) <= 4


def test_a_redirect_to_a_private_address_is_refused(server: CoverServer, fetching: MakeFetching) -> None:
    """An allowed host's name that leads inside is refused at the second hop as at the first."""
    server.answers["/it"] = a_redirect(server.url("/", host="other.test"))
    one = fetching()
    one.addresses["other.test"] = [["192.168.0.1"]]
    assert reason_of(one, server.url("/it")) == Missing.ADDRESS


def test_three_redirects_are_followed(server: CoverServer, fetching: MakeFetching) -> None:
    """To another allowed host too."""
    server.answers |= {"/1": a_redirect("/2"), "/2": a_redirect(server.url("/3", "other.test")), "/3": a_redirect("/cover.jpg")}
    assert server.url("/1") in fetching().fetcher.fetch([server.url("/1")])


# ── what it may cost ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_fetches_in_parallel_within_max_connections(server: CoverServer, fetching: MakeFetching) -> None:
    """30 covers of 50 ms each over 5 connections: never more than 5 at once, and all are there."""
    open_now: list[None] = []
    most: list[int] = []

    def slowly(connection: Any) -> None:
        open_now.append(None)
        most.append(len(open_now))
        time.sleep(0.05)
        open_now.pop()  # before the answer: with it the client may come again
        an_answer(a_jpeg_cover())(connection)

    urls = [server.url(f"/{number}") for number in range(30)]
    server.answers |= {f"/{number}": slowly for number in range(30)}
    one = fetching(max_connections=5)
    assert set(one.fetcher.fetch(urls)) == set(urls)
    assert 2 <= max(most) <= 5


def test_one_deadline_holds_for_the_whole_batch(server: CoverServer, fetching: MakeFetching) -> None:
    """30 URLs that never answer cost a batch one covers.timeout_ms, not thirty."""
    server.answers |= {f"/{n}": in_drops(b"", b"", every_s=0.05, until=server.stopping) for n in range(30)}
    one = fetching(timeout_ms=400)
    began_s = time.monotonic()
    assert one.fetcher.fetch(server.url(f"/{n}") for n in range(30)) == {}
    assert time.monotonic() - began_s < 1.0
    assert sum(one.counted().values()) == 30


def test_a_host_that_keeps_failing_rests(server: CoverServer, fetching: MakeFetching) -> None:
    """After three failures in a row its covers are missing at once, while another host's are still fetched."""
    one = fetching(max_connections=1)
    one.addresses["dead.test"] = [["127.9.9.9"]]
    for number in range(3):
        one.fetcher.fetch([server.url(f"/{number}", "dead.test")])
    assert one.counted() == {"connection": 3}
    one.fetcher.fetch([server.url("/4", "dead.test")])
    assert one.counted() == {"connection": 3, "host_rests": 1}
    assert one.asked == ["dead.test"] * 3
    assert server.url() in one.fetcher.fetch([server.url()])


@pytest.mark.parametrize("answered", ["/cover.jpg", "/gone"])
def test_an_answer_between_failures_keeps_a_host_awake(server: CoverServer, fetching: MakeFetching, answered: str) -> None:
    """Failures have to come in a row: two, an answer (a 404 is one) and two more are no reason to rest."""
    server.answers |= {f"/{number}": a_reset for number in range(4)}
    one = fetching()
    for path in ("/0", "/1", answered, "/2", "/3"):
        one.fetcher.fetch([server.url(path)])
    server.answers["/4"] = an_answer(a_jpeg_cover())
    assert server.url("/4") in one.fetcher.fetch([server.url("/4")])


def test_a_host_that_takes_no_connection_leaves_time_for_others(server: CoverServer, fetching: MakeFetching) -> None:
    """A connection may take half of the time: with the only thread waiting for a dead host, the next cover still comes."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for waiting in (first, second):  # its backlog is full: what comes now is not answered
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        one = fetching(max_connections=1, allowed_hosts=[f"dead.test:{port}", f"covers.test:{server.port}"], timeout_ms=1_000)
        found = one.fetcher.fetch([f"http://dead.test:{port}/", server.url()])
    assert set(found) == {server.url()}
    assert one.counted() == {"connection": 1, "fetched": 1}


def test_a_host_that_hangs_rests_too(server: CoverServer, fetching: MakeFetching) -> None:
    """A resolver that does not come back is not waited for beyond the deadline, and its host is left out next."""
    release = threading.Event()
    one = fetching(max_connections=3, timeout_ms=200)
    one.addresses["dead.test"] = [Hanging(release)]
    assert one.fetcher.fetch(server.url(f"/{number}", "dead.test") for number in range(3)) == {}
    release.set()
    began_s = time.monotonic()
    assert one.fetcher.fetch([server.url("/4", "dead.test")]) == {}
    assert time.monotonic() - began_s < 0.1
    assert one.counted() == {"timeout": 3, "host_rests": 1}


class Hanging(list[str]):
    """An answer of the resolver that comes when the test says so."""

    def __init__(self, release: threading.Event) -> None:
        super().__init__(["127.0.0.1"])
        self._release = release

    def __iter__(self) -> Iterator[str]:
        assert self._release.wait(10)
        return super().__iter__()


def test_a_healthy_host_that_is_merely_busy_does_not_rest(server: CoverServer, fetching: MakeFetching) -> None:
    """Fetches that began late, because a batch had many, are not held against the host when the deadline cuts them."""

    def slowly(connection: Any) -> None:
        time.sleep(0.1)
        an_answer(a_jpeg_cover())(connection)

    server.answers |= {f"/{number}": slowly for number in range(300)}
    one = fetching(timeout_ms=2_000, max_connections=6)
    assert 0 < len(one.fetcher.fetch(server.url(f"/{number}") for number in range(300))) < 300
    assert server.url() in one.fetcher.fetch([server.url()])


def test_few_covers_are_decoded_at_once(server: CoverServer, fetching: MakeFetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take 200 MB while it is decoded: however many connections there are, two are decoded at a time."""
    at_once: list[int] = [0]
    most: list[int] = []

    def decode(self: Fetching, data: bytes) -> Pixels:
        at_once[0] += 1
        most.append(at_once[0])
        time.sleep(0.02)
        at_once[0] -= 1
        return decode_cover(data, SMALL_COVERS)

    monkeypatch.setattr(Fetching, "_decode", decode)
    server.answers |= {f"/{number}": an_answer(a_jpeg_cover()) for number in range(16)}
    one = fetching()
    assert len(one.fetcher.fetch(server.url(f"/{number}") for number in range(16))) == 16
    assert max(most) == 2


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nLocation: http://covers.test/\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"


def test_no_answer_of_a_stranger_raises(server: CoverServer, fetching: MakeFetching) -> None:
    """Mangled bytes in place of an answer are a missing cover, whatever the parser makes of them."""
    chance = random.Random(7)
    one = fetching(cache_bytes=0)
    for number in range(300):
        start = chance.randrange(len(ANSWER))
        mangled = ANSWER[:start] + chance.randbytes(chance.randrange(9)) + ANSWER[start + chance.randrange(9) :]
        server.answers[f"/{number}"] = lambda connection, mangled=mangled: connection.sendall(mangled)
    assert one.fetcher.fetch(server.url(f"/{number}") for number in range(300)) == {}
    assert sum(one.counted().values()) == 300


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_certificate_that_nobody_vouches_for_is_refused(server: CoverServer, fetching: MakeFetching, tmp_path: Any) -> None:
    """https is verified: the same server is refused with the system's certificates, and read with its own trusted."""
    certificate = a_certificate(tmp_path, "covers.test")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    listener = CoverServer()
    listener.wrap(theirs)
    try:
        hosts = [f"covers.test:{listener.port}", f"other.test:{listener.port}"]
        url = f"https://covers.test:{listener.port}/cover.jpg"
        assert reason_of(fetching(allowed_hosts=hosts), url) == Missing.TLS
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert url in fetching(allowed_hosts=hosts, ssl_context=trusting).fetcher.fetch([url])
        other = fetching(allowed_hosts=hosts, ssl_context=trusting)
        assert reason_of(other, url.replace("covers.test", "other.test")) == Missing.TLS, "the name has to match"
        listener.answers["/down"] = a_redirect(server.url())
        downgraded = fetching(allowed_hosts=[*hosts, f"covers.test:{server.port}"], ssl_context=trusting)
        assert reason_of(downgraded, url.replace("/cover.jpg", "/down")) == Missing.REDIRECT
    finally:
        listener.close()
