"""Where webhooks may go: public hosts by https, and what an admin has named. Nothing inside is reached through them.

A name is resolved and every address of it checked when a webhook is made, which tells its maker at once. What counts is
the check when a socket is made, of the very address that it will be connected to: a name that leads elsewhere by then
(DNS rebinding), or that is spelled as no parser expects, comes no further.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from yarl import URL

from services.common.errors import InvalidArgument

PRIVATE_HOSTS_VARIABLE = "ANTHESIS_WEBHOOK_PRIVATE_HOSTS"
MAX_URL = 2000
RESOLVE_S = 5.0
UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out for the public
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address in the last 32 bits
_REMEDY = f"choose a public host, or have an admin name this one in {PRIVATE_HOSTS_VARIABLE}"


class ForbiddenAddress(OSError):
    """A socket to it is not made."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """`private_hosts`: names that may also be reached by http and at addresses that are not public."""

    private_hosts: frozenset[str] = frozenset()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "AddressPolicy":
        names = env.get(PRIVATE_HOSTS_VARIABLE, "").split(",")
        return cls(frozenset(_plain_host(name.strip()) for name in names if name.strip()))

    def allows_private(self, host: str) -> bool:
        return _plain_host(host) in self.private_hosts

    def check_url(self, text: str) -> URL:
        """The URL, as it is called. Raises InvalidArgument for one that may not be."""
        if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
            raise InvalidArgument(
                f"url {text[:40]!r}… is not allowed; use at most {MAX_URL} ASCII characters, no spaces"
            )
        try:
            url = URL(text)
            host, _ = url.host, url.port  # raises where the port is none
        except ValueError as error:
            raise InvalidArgument(f"url is no URL: {error}; write https://HOST/PATH") from None
        if url.scheme not in ("https", "http") or not host:
            raise InvalidArgument(f"url has scheme {url.scheme[:20]!r}; write https://HOST/PATH")
        if url.scheme == "http" and not self.allows_private(host):
            raise InvalidArgument(f"url to {host} is http, which anybody on the way can read; use https, or {_REMEDY}")
        if url.user is not None or url.password is not None:
            raise InvalidArgument(f"url to {host} has a user or password in it; leave it out: deliveries are signed")
        if "#" in text:
            raise InvalidArgument(f"url to {host} has a fragment, which no server is sent; leave out what follows #")
        return url

    async def check_resolves(self, url: URL) -> None:
        """Raise InvalidArgument unless the host is there, at allowed addresses alone."""
        host = url.host or ""
        if self.allows_private(host):
            return
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise InvalidArgument(f"url: host {host} cannot be resolved ({error}); check its spelling") from None
        for *_, address in found:
            if not is_public(str(address[0])):
                raise InvalidArgument(f"url: host {host} is at {address[0]}, which is not public; {_REMEDY}")

    def socket_factory(self, url: URL) -> Callable[[Any], socket.socket]:
        """What makes the sockets to `url`'s host, for aiohttp. It raises ForbiddenAddress."""
        private = self.allows_private(url.host or "")

        def make(address_info: Any) -> socket.socket:
            family, kind, protocol, _, address = address_info
            if not private and not is_public(address[0]):
                raise ForbiddenAddress(f"host {url.host} is at {address[0]}, which is not public; {_REMEDY}")
            return socket.socket(family=family, type=kind, proto=protocol)

        return make


PUBLIC_ONLY = AddressPolicy()


def is_public(text: str) -> bool:
    """Whether an IP address is one that everybody may reach, also where it hides an IPv4 address in an IPv6 one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            address = address.ipv4_mapped
        elif address in NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address not in UNICAST or address.sixtofour or address.teredo:  # tunnels lead anywhere
            return False
    return address.is_global and not address.is_multicast


def _plain_host(host: str) -> str:
    return host.lower().rstrip(".")
