"""The cluster's living nodes, read from Ray now and then: asking costs a blocking call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import ray

from pipelines.executor.shapes import NodeShape

__all__ = ["RayNodes"]

_AGE_S = 10.0


class RayNodes:
    """`fresh` is at most ten seconds old; `last` is what is known, and is renewed behind the caller's back."""

    def __init__(self) -> None:
        self._nodes: Sequence[NodeShape] = ()
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def fresh(self) -> Sequence[NodeShape]:
        if self._stale():
            await asyncio.shield(self._read())
        return self._nodes

    def last(self) -> Sequence[NodeShape]:
        if self._stale():
            self._read()
        return self._nodes

    def _stale(self) -> bool:
        return time.monotonic() - self._read_at > _AGE_S

    def _read(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._ask())
        return self._reading

    async def _ask(self) -> None:
        found = await asyncio.to_thread(ray.nodes)
        self._nodes = [
            NodeShape(resources=node["Resources"], labels=node.get("Labels") or {}) for node in found if node["Alive"]
        ]
        self._read_at = time.monotonic()
