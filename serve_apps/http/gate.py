"""The ASGI gate in front of everything: request id, API key, body limit, and the fast lane for inference paths.

Plain ASGI on purpose: a framework's routing, validation and dependency injection cost more than all the rest of the
router together. What is not on the fast lane goes on to the FastAPI application, with the caller already known.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from cluster.errors import HeadraceError, InternalError, TooLarge
from serve_apps.http.console_page import CONSOLE_PATH
from serve_apps.http.deps import CLUSTER, authenticate, require_role
from serve_apps.http.docs_page import DOCS_PATHS
from serve_apps.http.document import OPEN
from serve_apps.http.exchange import Exchange, Reply, StreamReply, error_reply
from serve_apps.router.service import Router

__all__ = ["TRUSTED", "Gate", "Lane"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Lane = Callable[[Exchange], Awaitable[Reply | StreamReply]]
Find = Callable[[str], Lane | None]

TRUSTED = "headrace.trusted"
"""Scope key of calls that came over a Serve handle. No HTTP client can set it."""
_OPEN = DOCS_PATHS.union(OPEN, (CONSOLE_PATH,))
_UPLOADS = "/workflows/"
_WATCH_AFTER_S = 0.05


class Gate:
    """ASGI application. `find(path)` gives the fast lane's handler of a POST path; `app` serves the rest.

    `id_header`: add `x-request-id` to answers (Ray Serve adds it itself). `watch`: look out for callers that go away
    (Ray Serve does it itself, by cancelling). `max_upload_bytes`: limit of paths that take files.
    """

    def __init__(
        self,
        app: App,
        router: Router,
        find: Find,
        *,
        id_header: bool = True,
        watch: bool = True,
        max_upload_bytes: int = 1 << 30,
        open_prefixes: tuple[str, ...] = (),
    ):
        self._app = app
        self._router = router
        self._find = find
        self._id_header = id_header
        self._watch = watch
        self._max_upload_bytes = max_upload_bytes
        self._open_prefixes = open_prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        raw = scope["headers"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
        request_id = headers.get("x-request-id", "")
        if not request_id or len(request_id) > 128 or not request_id.isprintable():
            request_id = os.urandom(12).hex()
        scope["headrace.request_id"] = request_id
        table = self._router.table
        lane = self._find(path) if scope["method"] == "POST" else None
        try:
            if scope.get(TRUSTED):
                caller = CLUSTER
            elif path in _OPEN or (self._open_prefixes and path.startswith(self._open_prefixes)):
                caller = None
            else:
                caller = authenticate(table, raw, now=self._router.clock.now())
            limit = table.max_body_bytes if not path.startswith(_UPLOADS) else self._max_upload_bytes
            length = headers.get("content-length")
            if length is not None and length.isdecimal() and (len(length) > 18 or int(length) > limit):
                raise _too_large(limit, int(length) if len(length) <= 18 else None)
            if lane is not None and caller is not None:
                require_role(caller, "invoke")
                body = await _read(receive, limit)
                if body is None:
                    return
        except HeadraceError as error:
            reply = error_reply(error, path=path, request_id=request_id)
            if isinstance(error, TooLarge):
                # The rest of the body is not read, so the connection cannot be used again.
                reply.headers["connection"] = "close"
            await self._send_whole(send, reply, request_id)
            return
        if lane is None or caller is None:
            scope["headrace.caller"] = caller
            limited = _Limited(receive, limit)
            await self._app(scope, limited, self._outgoing(send, path, request_id, limited))
            return
        assert body is not None
        exchange = Exchange(path=path, headers=headers, body=body, caller=caller, request_id=request_id)
        if self._watch:
            await self._watched(lane, exchange, receive, send)
        else:
            await self._answer(lane, exchange, send)

    async def _answer(self, lane: Lane, exchange: Exchange, send: Send) -> None:
        try:
            reply = await lane(exchange)
        except HeadraceError as error:
            reply = error_reply(error, path=exchange.path, request_id=exchange.request_id)
        except Exception as error:
            defect = InternalError(f"a defect in headrace ({type(error).__name__}); request id {exchange.request_id}")
            reply = error_reply(defect, path=exchange.path, request_id=exchange.request_id)
            await self._send_whole(send, reply, exchange.request_id)
            raise
        if isinstance(reply, Reply):
            await self._send_whole(send, reply, exchange.request_id)
        else:
            await self._send_stream(send, reply, exchange.request_id)

    async def _watched(self, lane: Lane, exchange: Exchange, receive: Receive, send: Send) -> None:
        """Answer, and give up when the caller goes away. Looking out starts late: most answers are there before."""
        loop = asyncio.get_running_loop()
        work = asyncio.current_task()
        watcher: asyncio.Task[None] | None = None
        gone = False

        async def watch() -> None:
            nonlocal gone
            await _disconnected(receive)
            gone = True
            assert work is not None
            work.cancel()

        def start() -> None:
            nonlocal watcher
            watcher = loop.create_task(watch())

        timer = loop.call_later(_WATCH_AFTER_S, start)
        try:
            await self._answer(lane, exchange, send)
        except asyncio.CancelledError:
            if not gone:
                raise
            assert work is not None
            work.uncancel()
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()

    def has_lane(self, path: str) -> bool:
        """Whether POST requests to `path` are answered here, without the application behind."""
        return self._find(path) is not None

    def outermost(self) -> Gate:
        """The same gate for a place where nobody else adds request ids and looks out for callers that go away."""
        return Gate(
            self._app,
            self._router,
            self._find,
            id_header=True,
            watch=True,
            max_upload_bytes=self._max_upload_bytes,
            open_prefixes=self._open_prefixes,
        )

    def _head(
        self, status: int, media_type: str, headers: Mapping[str, str], request_id: str
    ) -> MutableMapping[str, Any]:
        out = [(b"content-type", media_type.encode())]
        for name, value in headers.items():
            out.append((name.encode(), value.encode("latin-1", "replace")))
        if self._id_header:
            out.append((b"x-request-id", request_id.encode("latin-1", "replace")))
        return {"type": "http.response.start", "status": status, "headers": out}

    async def _send_whole(self, send: Send, reply: Reply, request_id: str) -> None:
        head = self._head(reply.status, reply.media_type, reply.headers, request_id)
        head["headers"].append((b"content-length", str(len(reply.body)).encode()))
        await send(head)
        await send({"type": "http.response.body", "body": reply.body})

    async def _send_stream(self, send: Send, reply: StreamReply, request_id: str) -> None:
        chunks = reply.chunks
        try:
            await send(self._head(200, reply.media_type, reply.headers, request_id))
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await chunks.aclose()

    def _outgoing(self, send: Send, path: str, request_id: str, limited: _Limited) -> Send:
        """Adds the request id; and says 413 where the framework makes something else of a body that was cut off."""
        encoded = request_id.encode("latin-1", "replace")
        replaced = False

        async def forward(message: MutableMapping[str, Any]) -> None:
            nonlocal replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                if limited.error is not None:
                    replaced = True
                    reply = error_reply(limited.error, path=path, request_id=request_id)
                    reply.headers["connection"] = "close"
                    await self._send_whole(send, reply, request_id)
                    return
                if self._id_header:
                    message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", encoded)]}
            await send(message)

        return forward


class _Limited:
    """A `receive` that refuses to deliver more than `limit` bytes of body."""

    def __init__(self, receive: Receive, limit: int):
        self._receive = receive
        self._limit = limit
        self._seen = 0
        self.error: TooLarge | None = None

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                self.error = _too_large(self._limit, None)
                raise self.error
        return message


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when the caller has gone. Raises TooLarge as soon as it is."""
    message = await receive()
    if message["type"] != "http.request":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit, len(body))
        return body
    parts, size = [body], len(body)
    while True:
        if size > limit:
            raise _too_large(limit, None)
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            break
    if size > limit:
        raise _too_large(limit, None)
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int, length: int | None) -> TooLarge:
    said = f"the body has {length} bytes" if length is not None else "the body is too long"
    return TooLarge(f"{said}; at most {limit} bytes are accepted (router.max_body_mb)", details={"limit": limit})
