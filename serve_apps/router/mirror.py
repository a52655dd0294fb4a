"""Shadow copies: sent beside the real request, never waited for, their answers dropped, their number bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

__all__ = ["COPY_PRIORITY", "MirrorPool", "mirrors"]

COPY_PRIORITY = 1 << 20
"""Hosts take it for their last level: where a mirrored version answers callers too, they come first."""


def mirrors(shares: Mapping[str, float], answering: str, roll: float) -> list[str]:
    """The versions that get a copy of this request: each with its share (percent), never the one that answers."""
    return [version for version, share in shares.items() if version != answering and roll * 100.0 < share]


class MirrorPool:
    """At most `limit` copies under way; more are dropped."""

    def __init__(self, limit: int = 64):
        self._limit = limit
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Run `work` in the background; False when it was dropped because too many are under way."""
        if len(self._tasks) >= self._limit:
            work.close()
            return False
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
