"""Runs on the session's cluster, asked for as a careful caller does: again while a store cannot answer just now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cluster.errors import HeadraceError
from serve_apps.http.runs_gateway import RayRunsGateway

T = TypeVar("T")
LONG_S = 180.0


async def surely(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer; asked again while whoever answers is starting, or too busy to do it in time."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + LONG_S
    while True:
        try:
            return await ask()
        except HeadraceError as error:
            if not error.retryable or loop.time() > give_up:
                raise
        await asyncio.sleep(0.1)


async def comes(look: Callable[[], Awaitable[T]]) -> T:
    """Ask again until there is an answer that is not empty."""
    async with asyncio.timeout(LONG_S):
        while True:
            if found := await surely(look):
                return found
            await asyncio.sleep(0.05)


async def ended(gateway: RayRunsGateway, run_id: str) -> dict[str, Any]:
    """The run once it has ended."""
    async with asyncio.timeout(LONG_S):
        after, done = 0, False
        while not done:
            page = await surely(lambda after=after: gateway.events(run_id, after, 10.0))  # type: ignore[misc]
            after = page["events"][-1]["id"] if page["events"] else after
            done = page["done"]
        return await surely(lambda: gateway.get(run_id))
