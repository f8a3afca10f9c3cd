import socket

import pytest

from services.common.errors import InvalidArgument
from services.registry.webhooks import addresses
from services.registry.webhooks.addresses import AddressPolicy, ForbiddenAddress, is_public

POLICY = AddressPolicy()
NAMED = AddressPolicy.from_env({"ANTHESIS_WEBHOOK_PRIVATE_HOSTS": "localhost, Hooks.Internal"})


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::1", "2001::1", "127.1", "localhost", ""),
    ],
)
def test_an_address_that_is_not_public_is_known_however_it_is_written(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/hook", "is http, which anybody on the way can read; use https"),
        ("ftp://example.com/hook", "has scheme 'ftp'; write https://HOST/PATH"),
        ("file:///etc/passwd", "has scheme 'file'"),
        ("example.com/hook", "has scheme ''"),
        ("https://", "write https://HOST/PATH"),
        ("https://ada:secret@example.com/", "has a user or password in it; leave it out"),
        ("https://example.com/#top", "has a fragment"),
        ("https://example.com:99999/", "no URL"),
        ("https://example.com/a b", "no spaces"),
        ("https://example.com/\nx", "no spaces"),
        ("https://exämple.com/", "ASCII"),
        ("https://example.com/" + "x" * 10_000, "at most 2000"),
        ("", "has scheme ''"),
    ],
)
def test_a_url_that_webhooks_do_not_go_to_is_refused_with_the_remedy(url, why):
    with pytest.raises(InvalidArgument, match=f"url.*{why}"):
        POLICY.check_url(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "localhost", "10.0.0.1", "169.254.169.254", "2130706433", "0x7f000001", "127.1", "0",
     "[::ffff:7f00:1]"],
)  # fmt: skip
async def test_a_host_that_leads_inside_is_refused_when_the_webhook_is_made(host):
    with pytest.raises(InvalidArgument, match="is not public; choose a public host, or have an admin name this one"):
        await POLICY.check_resolves(POLICY.check_url(f"https://{host}/hook"))


async def test_a_host_with_one_address_inside_among_public_ones_is_refused(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(InvalidArgument, match=r"host two.example is at 10.0.0.7, which is not public"):
        await POLICY.check_resolves(POLICY.check_url("https://two.example/"))


async def test_a_host_that_cannot_be_resolved_is_refused(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(InvalidArgument, match=r"host nobody.example cannot be resolved .*; check its spelling"):
        await POLICY.check_resolves(POLICY.check_url("https://nobody.example/"))


async def test_what_an_admin_names_may_be_inside_and_http_and_nothing_else_may():
    for url in ("http://localhost:8000/hook", "https://LOCALHOST/", "http://hooks.internal/", "http://localhost./"):
        await NAMED.check_resolves(NAMED.check_url(url))
    for url in ("http://127.0.0.1/", "http://hooks.internal.example/", "http://notlocalhost/"):
        with pytest.raises(InvalidArgument, match="is http"):
            NAMED.check_url(url)


def test_no_socket_is_made_to_an_address_inside(monkeypatch):
    inside = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))
    url = POLICY.check_url("https://example.com/")
    with pytest.raises(ForbiddenAddress, match=r"host example.com is at 10.0.0.1, which is not public"):
        POLICY.socket_factory(url)(inside)
    NAMED.socket_factory(NAMED.check_url("http://localhost/"))(inside).close()
    monkeypatch.setattr(addresses, "is_public", lambda address: True)  # the planted mistake
    POLICY.socket_factory(url)(inside).close()
