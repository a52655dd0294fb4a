"""Who is calling, and may they: API keys, roles, and the FastAPI dependencies that other route modules use.

Keys are looked up by their SHA-256 in the routing table, so that nothing on a request's path waits for an actor and
no key is ever stored or logged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from cluster.errors import Forbidden, Unauthorized
from serve_apps.table import RoutingTable, no_table_yet

__all__ = ["ANONYMOUS", "CLUSTER", "Caller", "authenticate", "caller_of", "require", "require_role"]


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `name` is the API key's name; `role` is `invoke` or `operate`."""

    name: str
    role: str


ANONYMOUS = Caller("anonymous", "operate")
"""Everybody, where `auth.enabled` is false."""
CLUSTER = Caller("cluster", "operate")
"""Calls over a Serve handle: whoever has one is inside the cluster already."""


def authenticate(table: RoutingTable, headers: Iterable[tuple[bytes, bytes]], *, now: float) -> Caller:
    """The caller that these raw ASGI headers (lower-case names) prove. `now`: seconds since the epoch.

    Raises Unauthorized without a key, with an unknown or with an expired one, and with two that differ: whoever sends
    them cannot know by which name and with which rights the call is made; Unavailable while no table has come, since
    then no key is known.
    """
    if not table.revision:
        raise no_table_yet()
    if not table.auth_enabled:
        return ANONYMOUS
    key = b""
    for name, value in headers:
        given = b""
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                given = token.strip()
        elif name == b"x-api-key":
            given = value.strip()
        if given and key and given != key:
            raise Unauthorized("two different API keys, in `Authorization: Bearer` and `x-api-key`: send only one")
        key = key or given
    if not key:
        raise Unauthorized("no API key: send `Authorization: Bearer <key>` or `x-api-key: <key>`")
    found = table.keys.get(hashlib.sha256(key).hexdigest())
    if found is None:
        raise Unauthorized("this API key is not known here; `headrace keys` lists and makes keys")
    if found.expires_at is not None and found.expires_at <= now:
        raise Unauthorized(f"the API key '{found.name}' has expired; make a new one with `headrace keys create`")
    return Caller(found.name, found.role)


def require_role(caller: Caller, role: str) -> None:
    """Raises Forbidden unless `caller` may do what needs `role`. `operate` may do everything."""
    if caller.role != "operate" and caller.role != role:
        raise Forbidden(f"the API key '{caller.name}' has the role '{caller.role}', but this call needs '{role}'")


def caller_of(request: Request) -> Caller:
    """The caller of this request: what the gate in front of the app found, or else found here from
    `app.state.table` (a function that returns the `RoutingTable`), which is how route modules are tested alone."""
    known: Any = request.scope.get("headrace.caller")
    if isinstance(known, Caller):
        return known
    if isinstance(known, Exception):
        raise known
    table: RoutingTable = request.app.state.table()
    return authenticate(table, request.scope["headers"], now=time.time())


def require(role: str) -> Callable[[Request], Caller]:
    """A FastAPI dependency: `caller: Annotated[Caller, Depends(require("operate"))]`."""

    def dependency(request: Request) -> Caller:
        caller = caller_of(request)
        require_role(caller, role)
        return caller

    return dependency
