"""Locks and queues that steps of all shards share: the arbiter (`cluster.slots`) for one life of the control plane.

Nothing of it is recorded: after a crash the shards say what they hold, and until all have, nothing is granted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import Unavailable
from cluster.slots import Arbiter, Reply, Report
from serve_apps.control.core import Core
from serve_apps.control.payload import Payload

__all__ = ["Slots"]


class Slots:
    """`exchange` serves the shards, the operation `slots` people."""

    def __init__(self, core: Core):
        self._core = core
        self._arbiter = Arbiter(epoch=core.journal.epoch, shards=1)
        self._reported = 1
        """How many shards hold runs, by what they say: those of a former `state.shards` still hold slots."""
        self._news: dict[int, asyncio.Event] = {}

    async def exchange(self, report: Report, wait_s: float) -> Reply | None:
        """Take a shard's report; with `wait_s`, answer when there is a grant for it or when the time is over. None: a
        newer life of that shard has spoken. Raises `Fenced` when another control plane owns the log."""
        self._reported = max(self._reported, report.shards)
        arbiter = self._sized()
        if arbiter.greets(report):
            # An arbiter that was replaced would free what the new one counts as held.
            await self._core.check_owner()
        news = self._news.setdefault(report.shard, asyncio.Event())
        reply = self._handle(report)
        if reply is None or not reply.known or reply.grants or wait_s <= 0:
            return reply
        try:
            async with asyncio.timeout(wait_s):
                while not arbiter.has_news(report):
                    news.clear()
                    await news.wait()
        except TimeoutError:
            pass
        return self._handle(report)

    async def view(self, payload: Payload) -> dict[str, Any]:
        """Who holds and who waits, and whom all wait for (`unheard`)."""
        return {"unheard": self.unheard(), "slots": self._sized().view()}

    def unheard(self) -> list[int]:
        """Shards that have not said what they hold: until then no lock and no slot of a named queue is granted."""
        if self._core.state.settings is None:
            return []
        arbiter = self._sized()
        return arbiter.missing if arbiter.shards > 1 else []

    def _handle(self, report: Report) -> Reply | None:
        reply = self._arbiter.handle(report)
        for shard in self._arbiter.told:
            if shard in self._news:
                self._news[shard].set()
        self._arbiter.told.clear()
        return reply

    def _sized(self) -> Arbiter:
        settings = self._core.state.settings
        if settings is None:
            raise Unavailable("the control plane has no configuration yet")
        shards = max(int(settings.get("run_store_shards", 1)), self._reported)
        if shards != self._arbiter.shards:
            self._arbiter.resize(shards)
        return self._arbiter
