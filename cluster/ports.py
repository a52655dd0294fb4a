"""TCP ports of this machine: which are free, and whether a given one can be listened on."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket

from cluster.errors import Unavailable

__all__ = ["check_can_listen", "free_ports"]

_FIRST = 20_000
_COUNT = 10_000


def free_ports(count: int) -> list[int]:
    """Ports that were free on every address just now, all different.

    They lie below the range that the kernel hands out to outgoing connections: of those a starting cluster opens
    many, and one of them could take a port between this look and its use.
    """
    found: list[int] = []
    while len(found) < count:
        port = _FIRST + secrets.randbelow(_COUNT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            if port not in found:
                found.append(port)
    return found


def check_can_listen(host: str, port: int) -> None:
    """Refuse, before Ray starts, where the router could not listen. Raises Unavailable with what to do."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise Unavailable(_refusal(host, port, error)) from None


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        advice = f"stop what uses it, or set router.port (HEADRACE__ROUTER__PORT={port + 1})"
        return f"port {port} on {host} is taken ({error.strerror}); {advice}"
    if error.errno == errno.EACCES:
        advice = "set router.port to 1024 or more"
    else:
        advice = "set router.host to an address of this machine, such as 127.0.0.1, or to 0.0.0.0 for all"
    return f"nothing can listen on port {port} of {host} ({error.strerror}); {advice}"
