"""How a long-lived process opens its bucket: one that is away, or full, is no reason to die or to stay dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.errors import StorageError, may_pass

__all__ = ["AGAIN_S", "patiently"]

AGAIN_S = 2.0
T = TypeVar("T")


async def patiently(
    work: Callable[[], Awaitable[T]], *, tell: Callable[[StorageError], None], again_s: float = AGAIN_S
) -> T:
    """What `work` returns, once it works: tried again every `again_s` seconds, and each time `tell` hears why not.

    Raises what waiting would not cure: a corrupt object, another format, an unsafe bucket, a newer owner.
    """
    while True:
        try:
            return await work()
        except StorageError as error:
            if not may_pass(error):
                raise
            tell(error)
        await asyncio.sleep(again_s)
