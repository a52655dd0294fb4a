"""A table source without a control plane: gives one table, and later ones when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from serve_apps.stats import RouterReport
from serve_apps.table import RoutingTable

__all__ = ["StaticTable"]


class StaticTable:
    """Has the control plane's `watch` and `report`, over a table in memory. `reports` keeps what routers said."""

    def __init__(self, table: RoutingTable):
        self._table = table
        self._changed = asyncio.Event()
        self.reports: list[RouterReport] = []

    def publish(self, table: RoutingTable) -> None:
        """The next table; its revision must be higher."""
        if table.revision <= self._table.revision:
            raise ValueError(f"revision {table.revision} is not above {self._table.revision}")
        self._table = table
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None:
        try:
            async with asyncio.timeout(timeout_s):
                while self._table.revision <= revision:
                    await self._changed.wait()
        except TimeoutError:
            return None
        return self._table

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None:
        self.reports.append(RouterReport.from_wire(stats))
