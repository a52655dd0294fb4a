"""Which hosts headrace may call on a user's behalf (webhooks): allow-list, and no private address outside dev.

The host of the URL is checked when the URL is accepted, and the addresses that it resolves to are checked again at
each connection, by the resolver that the connection itself uses: a name that later points elsewhere gains nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from cluster.errors import Forbidden, InvalidInput

__all__ = ["OutboundPolicy"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidInput(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidInput(f"{url!r} must be an absolute http or https URL")
        if parts.username or parts.password:
            raise InvalidInput("a URL with a user name or password in it is refused: receivers check the signature")
        if self.open_world:
            return
        address = _address(host)
        if address is not None:
            self.check_addresses(host, [host])
            if not any(address in network for network in self._networks()):
                self._check_host(host)
            return
        self._check_host(host)

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Refuse a host any of whose resolved addresses is not public.

        Raises:
            Forbidden: names the host, not the address, which would tell an outsider about the inside.
        """
        if self.open_world:
            return
        for text in addresses:
            address = ipaddress.ip_address(text.split("%")[0])
            mapped = getattr(address, "ipv4_mapped", None)
            address = mapped or address
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


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
