"""Notices that a log is owned by somebody else now, also while nothing is written to it."""

from __future__ import annotations

import asyncio

from cluster.errors import CorruptObject, Fenced, StorageError
from cluster.log import DurableLog

__all__ = ["until_lost"]


async def until_lost(log: DurableLog, *, every_s: float) -> StorageError:
    """Returns why, when the log can write no more, or another owner has followed."""
    stopped = asyncio.ensure_future(log.wait_stopped())
    try:
        while True:
            done, _ = await asyncio.wait([stopped], timeout=every_s)
            if done:
                return stopped.result()
            try:
                await log.check_owner()
            except (Fenced, CorruptObject) as error:
                return error
            except StorageError:
                continue  # a look that fails says nothing; writing waits for better times, too
    finally:
        stopped.cancel()
