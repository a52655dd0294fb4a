"""An HTTP proxy in front of an S3 server that answers 503, is slow, or does the work and loses the answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


MOST_FAULTS = 4
"""So many requests for one object go wrong, and no more: whoever tries six times gets through, whatever the order in
which concurrent requests meet their fates."""


@dataclass
class FaultProxy:
    """Shares are of all requests, up to `MOST_FAULTS` for each method and object. `seen` counts what was injected."""

    target: str
    random: random.Random
    unavailable: float = 0.0
    lost_answer: float = 0.0
    slow: float = 0.0
    slow_s: float = 0.3
    seen: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    port: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listen on a free port of 127.0.0.1 until the block ends."""
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._handle(session, request)

            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _handle(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fate = self.random.random()
        self.seen["requests"] += 1
        wanted = (request.method, request.path)
        if fate < self.unavailable + self.lost_answer:
            self.faults[wanted] += 1
            if self.faults[wanted] > MOST_FAULTS:
                fate = 1.0
        if fate < self.unavailable:
            self.seen["unavailable"] += 1
            return web.Response(
                status=503, content_type="application/xml", text="<Error><Code>SlowDown</Code><Message/></Error>"
            )
        if self.random.random() < self.slow:
            self.seen["slow"] += 1
            await asyncio.sleep(self.slow_s)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = URL(self.target + request.raw_path, encoded=True)  # signed as it is: no re-quoting
        async with session.request(
            request.method, url, headers=headers, data=io.BytesIO(body) if body else None
        ) as answer:
            content = await answer.read()
            if fate < self.unavailable + self.lost_answer:
                self.seen["lost_answer"] += 1
                assert request.transport is not None
                request.transport.abort()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=content)
