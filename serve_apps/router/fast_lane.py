"""A shortcut inside the router's replica: inference requests go from the web server straight to the gate.

Ray Serve wraps every request of an ingress replica in two tasks, a request context, an access-log line and several
metrics; for answers that take well under a millisecond this costs more than everything else together. Serve lets an
environment variable of the replica's process name a function that gives ASGI middlewares for its web server, and a
middleware may answer by itself. What it does not answer takes Serve's usual way. headrace counts, limits and cancels
these requests itself, and Serve's web server still waits for them when it stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve_apps.http.gate import Gate

__all__ = ["CALLBACK_VARIABLE", "FastLane", "install", "middlewares"]

CALLBACK_VARIABLE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.router.fast_lane.middlewares"}
"""For the runtime environment of the router's replicas."""

_installed: Gate | None = None


def install(gate: Gate | None) -> None:
    """The gate of this process; None takes the shortcut out."""
    global _installed
    _installed = gate


class FastLane:
    """ASGI middleware: POST requests that the gate knows a lane for never reach Serve."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        gate = _installed
        if gate is not None and scope["type"] == "http" and scope["method"] == "POST" and gate.has_lane(scope["path"]):
            await gate(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def middlewares() -> list[Any]:
    """Called by Serve when a replica's web server starts."""
    from starlette.middleware import Middleware

    return [Middleware(FastLane)]
