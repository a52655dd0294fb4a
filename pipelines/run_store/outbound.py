"""Which hosts headrace may call on a user's behalf (webhooks): allow-list, and no private address outside dev.

The host of the URL is checked when the URL is accepted, and the addresses that it resolves to are checked again at
each connection, by the resolver that the connection itself uses: a name that later points elsewhere gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cluster.errors import Forbidden, InvalidInput

__all__ = ["CheckedResolver", "OutboundPolicy", "UrlPolicy"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class UrlPolicy(Protocol):
    """Which URLs may be called; raises `Forbidden` or `InvalidInput`."""

    def check_url(self, url: str) -> None: ...

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None: ...


class CheckedResolver(AbstractResolver):
    """Resolves a name and lets the policy see the addresses before a connection is made to any of them."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp asks. Raises what the policy raises."""
        results = await self._inner.resolve(host, port, family)
        self._policy.check_addresses(host, [result["host"] for result in results])
        return results

    async def close(self) -> None:
        """Release the resolver."""
        await self._inner.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundPolicy:
    """`allow` holds host patterns (`hooks.example.com`, `*.example.com`) and networks (`10.1.0.0/16`).

    In dev (`open_world`) everything is allowed. Elsewhere a host must match a pattern and its addresses must be
    public, or lie in an allowed network.
    """

    allow: tuple[str, ...] = ()
    open_world: bool = False
    setting: str = "webhooks.allow"

    def check_url(self, url: str) -> None:
        """Refuse what can be refused without a name lookup.

        Raises:
            InvalidInput: not an absolute http(s) URL, or credentials stand in it.
            Forbidden: the host is not on the allow-list, or is a literal private address.
        """
        # Read as the HTTP client will read it: what two parsers take for two hosts is how such checks are passed by.
        try:
            parts = URL(url)
            host, _ = parts.raw_host, parts.port
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidInput(f"{url!r} must be an absolute http or https URL")
        if parts.user or parts.password:
            raise InvalidInput("a URL with a user name or password in it is refused: receivers check the signature")
        if self.open_world:
            return
        address = _address(host)
        if address is not None:
            self.check_addresses(host, [host])
            if not any(address in network for network in self._networks()):
                self._check_host(host)
            return
        if ":" in host or host.replace(".", "").isdigit():
            # The HTTP client takes it for an address, and connects without asking the resolver that checks addresses.
            raise InvalidInput(f"{host} is no address: write it as four numbers, or as IPv6")
        self._check_host(host)

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Refuse a host any of whose resolved addresses is not public.

        Raises:
            Forbidden: names the host, not the address, which would tell an outsider about the inside.
        """
        if self.open_world:
            return
        for text in addresses:
            address = _inner(ipaddress.ip_address(text.split("%")[0]))
            if any(address in network for network in self._networks()):
                continue
            if not address.is_global or address.is_multicast:
                raise Forbidden(f"{host} has an address inside this network: add its network to {self.setting}")

    def _check_host(self, host: str) -> None:
        lowered = host.lower().rstrip(".")
        if not any(fnmatchcase(lowered, pattern.lower()) for pattern in self.allow if "/" not in pattern):
            raise Forbidden(f"the host {host} is not in {self.setting}: add it there to allow calls to it")

    def _networks(self) -> list[_Network]:
        return [ipaddress.ip_network(entry, strict=False) for entry in self.allow if "/" in entry]


def _address(host: str) -> _Address | None:
    try:
        return _inner(ipaddress.ip_address(host.split("%")[0]))
    except ValueError:
        return None


def _inner(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 address leads to (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
