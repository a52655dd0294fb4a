"""How the two clients do what cannot be the same code for both: send, wait, read a stream. Blocking, and on asyncio.

What a client can do is written once, in `async_client` and `async_operators`; the blocking ones are made from these.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from cluster.errors import Conflict, HeadraceError, InternalError, Unavailable
from cluster.sse import SseEvent, SseLines, SseReader
from headrace.transports import (
    AsyncHandleTransport,
    AsyncHttpTransport,
    AsyncTransport,
    HandleTransport,
    Heard,
    HttpTransport,
    Transport,
)
from headrace.wire import Call

__all__ = ["AsyncShell", "Shell"]

P = ParamSpec("P")
T = TypeVar("T")
_PAUSES_S = (0.2, 0.6, 1.5)


class Shell:
    """A connection whose calls block."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        environment: str | None = None,
        timeout_s: float = 60,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._sleep = sleep
        if transport is None:
            found_url, found_key = _find(url, api_key, environment)
            if found_url is None:
                transport = HandleTransport(timeout_s=timeout_s)
            else:
                transport = HttpTransport(found_url, found_key, timeout_s=timeout_s)
        self._transport: Transport = transport

    @classmethod
    def in_cluster(cls, *, timeout_s: float = 60) -> Self:
        """Over the router's Serve handle: for drivers, tasks and actors of the Ray cluster. Needs no key."""
        return cls(transport=HandleTransport(timeout_s=timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _streams(self) -> bool:
        """Whether a stream comes as it grows; over a handle it comes as a whole."""
        return not isinstance(self._transport, HandleTransport)

    def _do(self, call: Call[T]) -> T:
        """Send a call; one that is safe to repeat is repeated while the cluster cannot be reached, or still does it."""
        for pause in (*_PAUSES_S, None):
            try:
                answer = self._transport.send(call.method, call.path, call.headers, call.body, call.timeout_s)
                return call.parse(answer)
            except (Unavailable, Conflict) as error:
                if not call.retry_safe or pause is None or not _is_passing(error):
                    raise
                self._sleep(_pause_s(pause, error))
        raise InternalError("unreachable")

    def _apart(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Reads files."""
        return work(*args, **kwargs)

    def _sse(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        give_up: float | None = None,
        heard: Heard | None = None,
    ) -> Iterator[SseEvent]:
        """The events of one answer. `give_up`: monotonic time; looked at whenever something comes, which is at least
        every 15 s (the server's heartbeat). `heard` gets the answer's headers. Raises TimeoutError."""
        reader = SseReader()
        _check_time(give_up)
        with self._transport.chunks(method, path, {**headers, **_ACCEPT}, body, heard) as chunks:
            for chunk in chunks:
                yield from reader.feed(chunk)
                _check_time(give_up)

    def _lines(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
        """The lines of an answer of text, without their ends."""
        cutter = SseLines()
        with self._transport.chunks(method, path, headers, body) as chunks:
            for chunk in chunks:
                yield from cutter.feed(chunk)
        yield from cutter.end()


class AsyncShell:
    """The same on asyncio."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        environment: str | None = None,
        timeout_s: float = 60,
        transport: AsyncTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._sleep = sleep
        if transport is None:
            found_url, found_key = _find(url, api_key, environment)
            if found_url is None:
                transport = AsyncHandleTransport(timeout_s=timeout_s)
            else:
                transport = AsyncHttpTransport(found_url, found_key, timeout_s=timeout_s)
        self._transport: AsyncTransport = transport

    @classmethod
    def in_cluster(cls, *, timeout_s: float = 60) -> Self:
        """Over the router's Serve handle: for deployments and async actors of the Ray cluster. Needs no key."""
        return cls(transport=AsyncHandleTransport(timeout_s=timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _streams(self) -> bool:
        return not isinstance(self._transport, AsyncHandleTransport)

    async def _do(self, call: Call[T]) -> T:
        for pause in (*_PAUSES_S, None):
            try:
                answer = await self._transport.send(call.method, call.path, call.headers, call.body, call.timeout_s)
                return call.parse(answer)
            except (Unavailable, Conflict) as error:
                if not call.retry_safe or pause is None or not _is_passing(error):
                    raise
                await self._sleep(_pause_s(pause, error))
        raise InternalError("unreachable")

    async def _apart(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Reads files, in a thread."""
        return await asyncio.to_thread(work, *args, **kwargs)

    async def _sse(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        give_up: float | None = None,
        heard: Heard | None = None,
    ) -> AsyncIterator[SseEvent]:
        """As `Shell._sse`, but exact to the moment."""
        reader = SseReader()
        _check_time(give_up)
        accepted = {**headers, **_ACCEPT}
        async with self._transport.chunks(method, path, accepted, body, heard) as chunks, aclosing(chunks):
            while True:
                left = None if give_up is None else give_up - time.monotonic()
                async with asyncio.timeout(left):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                for event in reader.feed(chunk):
                    yield event

    async def _lines(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[str]:
        cutter = SseLines()
        async with self._transport.chunks(method, path, headers, body) as chunks, aclosing(chunks):
            async for chunk in chunks:
                for line in cutter.feed(chunk):
                    yield line
        for line in cutter.end():
            yield line


_ACCEPT = {"accept": "text/event-stream"}


def _find(url: str | None, api_key: str | None, environment: str | None) -> tuple[str | None, str | None]:
    from cluster.config.environment import process_environment
    from headrace.connection import find_connection

    found = find_connection(process_environment(), url=url, api_key=api_key, environment=environment)
    return found.url, found.api_key


def _is_passing(error: HeadraceError) -> bool:
    """A conflict that says when to come again is one with the same call, sent before and still being recorded."""
    return isinstance(error, Unavailable) or error.retry_after_s is not None


def _pause_s(pause: float, error: HeadraceError) -> float:
    return max(pause, min(error.retry_after_s or 0.0, 5.0))


def _check_time(give_up: float | None) -> None:
    if give_up is not None and time.monotonic() > give_up:
        raise TimeoutError
