"""How code inside the cluster asks models: through the router, so that rules, weights, breakers and fallbacks hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import HeadraceError, Unavailable
from cluster.names import ROUTER_APP
from serve_apps.protocol import BARE_INPUT, InferRequest, InferResult

__all__ = ["BARE_INPUT", "InferRequest", "InferResult", "ModelClient", "router_handle"]

_lock = threading.Lock()
_cached: Any = None


def router_handle(*, refresh: bool = False) -> Any:
    """The router's Serve handle, one for this process. Blocks on first use. Raises Unavailable without a router."""
    global _cached
    with _lock:
        if _cached is not None and not refresh:
            return _cached
        from ray import serve

        try:
            handle = serve.get_app_handle(ROUTER_APP)
            if not handle.is_initialized:
                # A plain task or driver has no event loop that outlives its call, so the handle needs a loop of its
                # own.
                handle._init(_run_router_in_separate_loop=True)
        except Exception as error:
            raise Unavailable(f"the router is not there: {error!s:.200}; is `headrace up` done?") from error
        _cached = handle
        return handle


class ModelClient:
    """Sends lists of requests to the router. Cheap to make: all clients of a process share one handle."""

    def __init__(self, handle: Any = None):
        self._handle = handle

    async def infer_many(
        self,
        model: str,
        requests: Sequence[InferRequest],
        *,
        sticky: str | Sequence[str | None] | None = None,
        pinned: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[tuple[InferResult, dict[str, Any]]]:
        """The answers in order, each with `{model, version, rule, attempts, why}`.

        `sticky` (a run id, or one per request) keeps all requests with it on one version; `pinned` insists on one.
        Errors of single requests are in their results. Raises Unavailable when the router cannot be reached; then
        nothing is known of any request.
        """
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import RayServeException

        try:
            handle = self._handle or await asyncio.to_thread(router_handle)
            answers: list[tuple[InferResult, dict[str, Any]]] = await handle.infer_many.remote(
                model, list(requests), sticky, pinned, dict(headers or {})
            )
            return answers
        except HeadraceError:
            raise
        except RayTaskError as error:
            if isinstance(error.cause, HeadraceError):
                raise error.cause from None
            raise
        except (RayActorError, RayServeException, ConnectionError) as error:
            if self._handle is None:
                await asyncio.to_thread(router_handle, refresh=True)
            raise Unavailable(f"the router did not answer: {type(error).__name__}: {error!s:.200}") from error
