"""Hosts behind Serve handles: found by application name when first needed, their failures turned into headrace's
errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from cluster.errors import HeadraceError, InternalError, Overloaded, Unavailable
from serve_apps.protocol import InferRequest, InferResult, StreamChunk

__all__ = ["RayHosts", "running_replicas"]

_log = logging.getLogger(__name__)


class RayHosts:
    """`HostProvider` over Serve applications. One handle for each application, kept while its table lists it."""

    def __init__(self) -> None:
        self._hosts: dict[str, _RayHost] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def host(self, app: str) -> _RayHost:
        found = self._hosts.get(app)
        if found is None:
            found = self._hosts[app] = _RayHost(app)
        return found

    def keep(self, apps: Iterable[str]) -> None:
        """Forget all other applications, and look these up ahead of their first request."""
        wanted = set(apps)
        for app in [app for app in self._hosts if app not in wanted]:
            del self._hosts[app]
        for app in wanted:
            host = self.host(app)
            if not host.known:
                task = asyncio.get_running_loop().create_task(host.find())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


class _RayHost:
    """One application (`HostPort`)."""

    def __init__(self, app: str):
        self._app = app
        self._infer: Any = None
        self._stream: Any = None

    @property
    def known(self) -> bool:
        return self._infer is not None

    async def find(self) -> None:
        """Look the application up; that it is not there yet is no error here."""
        try:
            await self._resolve()
        except HeadraceError as error:
            _log.info("%s", error.message)

    def reachable(self) -> bool:
        return self._infer is None or running_replicas(self._infer) != 0

    async def infer(self, requests: Sequence[InferRequest]) -> list[InferResult]:
        if self._infer is None:
            await self._resolve()
        try:
            results: list[InferResult] = await self._infer.remote(list(requests))
            return results
        except Exception as error:
            raise self._translated(error) from error

    async def stream(self, request: InferRequest) -> AsyncIterator[StreamChunk]:
        if self._stream is None:
            await self._resolve()
        response: Any = None
        finished = False
        try:
            response = self._stream.remote(request)
            async for chunk in response:
                yield chunk
            finished = True
        except HeadraceError:
            finished = True
            raise
        except Exception as error:
            finished = True
            raise self._translated(error) from error
        finally:
            if response is not None and not finished:
                response.cancel()

    async def _resolve(self) -> None:
        from ray import serve

        try:
            # A blocking call to Serve's controller: kept off the event loop.
            handle = await asyncio.to_thread(serve.get_app_handle, self._app)
        except Exception as error:
            raise Unavailable(f"application {self._app} is not there: {error!s:.200}", retry_after_s=1.0) from error
        fast = {"request_serialization": "pickle", "response_serialization": "pickle"}
        self._infer = handle.options(method_name="infer", **fast)
        self._stream = handle.options(method_name="stream", stream=True, **fast)

    def _translated(self, error: Exception) -> HeadraceError:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

        if isinstance(error, HeadraceError):
            return error
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, HeadraceError):
            return cause
        if isinstance(cause, BackPressureError):
            return Overloaded(f"{self._app} has too many requests", retry_after_s=1.0)
        if isinstance(cause, DeploymentUnavailableError | RayServeException | RayActorError | ConnectionError):
            # The application may have been replaced: look it up anew.
            self._infer = self._stream = None
            return Unavailable(f"no replica of {self._app} answers: {type(cause).__name__}: {cause!s:.200}")
        if isinstance(error, RayTaskError):
            return InternalError(f"the host {self._app} failed: {type(cause).__name__}: {cause!s:.300}")
        return Unavailable(f"{self._app} could not be reached: {type(cause).__name__}: {cause!s:.200}")


def running_replicas(handle: Any) -> int | None:
    """How many replicas a Serve handle knows of; None when it cannot be told (it has never been told of any, or another
    release of Ray keeps it elsewhere). Serve offers no public way, and a call to a handle without replicas waits for
    one, however long that takes."""
    try:
        if not handle.running_replicas_populated():
            return None
        return len(handle._router._asyncio_router._request_router.curr_replicas)
    except (AttributeError, TypeError):
        return None
