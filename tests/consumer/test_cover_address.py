"""From which URLs and addresses a cover may come."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.cover_address import CoverMissing, Missing, read_url, refuse_address
from consumer.settings import CoverSettings


@pytest.mark.parametrize(
    "url",
    [
        "http://covers.test@evil.test/",
        "http://evil.test\\@covers.test/",
        "http://covers.test:80@evil.test/",
        "ftp://covers.test/a",
        "file:///etc/passwd",
        "//covers.test/a",
        "http://",
        "http:///a",
        "http://covers.test:99999/a",
        "http://[::1/a",
        "http://covers.test/a b",
        "http://covers.test/a\r\nHost: evil.test",
        "http://cövers.test/",
        "http://covers..test/",
        "http://covers.test/" + "a" * 3_000,
    ],
)
def test_an_odd_url_is_refused(url: str) -> None:
    """User names, other schemes, control characters, and what parsers read differently."""
    with pytest.raises(CoverMissing) as caught:
        read_url(url, ["covers.test"])
    assert caught.value.reason is Missing.URL


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://covers.test/a", True),
        ("https://COVERS.Test./a", True),
        ("http://covers.test:80/a", True),
        ("http://covers.test:443/a", False),
        ("http://covers.test:8080/a", False),
        ("http://ported.test:8080/a", True),
        ("http://ported.test/a", False),
        ("http://img.wild.test/a", True),
        ("http://a.b.wild.test/a", True),
        ("http://wild.test/a", False),
        ("http://evilwild.test/a", False),
        ("http://covers.test.evil/a", False),
        ("http://2130706433/a", False),
        ("http://0x7f.1/a", False),
        ("http://0177.0.0.1/a", False),
        ("http://127.0.0.1/a", False),
        ("http://[2001:db8::1]/a", True),
        ("http://[::ffff:127.0.0.1]/a", False),
    ],
)
def test_only_allowed_hosts_and_ports_are_asked(url: str, allowed: bool) -> None:
    """The host must be listed, by itself or as a subdomain of a listed `*.`, and a port other than the usual one with it."""
    hosts = ["covers.test", "Ported.test:8080", "*.wild.test", "2001:db8::1"]
    if allowed:
        assert read_url(url, hosts).path == "/a"
        return
    with pytest.raises(CoverMissing) as caught:
        read_url(url, hosts)
    assert caught.value.reason is Missing.HOST


NOT_PUBLIC = [
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "100.64.0.1", "0.0.0.0", "192.0.2.1", "198.18.0.1"),
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:0:4136:e378::1"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Private, loopback, link-local, metadata, multicast, reserved, and IPv6 addresses with such an IPv4 one inside."""
    with pytest.raises(CoverMissing):
        refuse_address(address, [])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_connected_to(address: str) -> None:
    """Public ones pass, also where the network translates IPv4 to IPv6."""
    refuse_address(address, [])


def test_allowed_networks_open_private_addresses_only() -> None:
    """An operator may allow private networks; link-local and metadata addresses stay closed."""
    networks = CoverSettings.model_validate({"allowed_networks": ["0.0.0.0/0", "::/0"]}).allowed_networks
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fc00::1"):
        refuse_address(address, networks)
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1", "100.100.100.200", "224.0.0.1"):
        with pytest.raises(CoverMissing):
            refuse_address(address, networks)


@given(st.one_of(st.text(), st.from_regex(r"https?://[^/]{0,30}(:[0-9]{0,6})?/.{0,20}")))
def test_no_text_in_place_of_a_url_raises(text: str) -> None:
    """A listing's URL is anybody's text: it is a target at an allowed host, or a missing cover."""
    with suppress(CoverMissing):
        assert read_url(text, ["*.test"]).host.endswith(".test")
