"""The control plane as a whole: table, reports, operator calls and the loop behind them. No Ray, no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from cluster.errors import Fenced, HeadraceError, NotFound
from cluster.slots import Reply, Report
from cluster.storage.port import Bucket
from serve_apps.control.breakers import Breakers
from serve_apps.control.checks import MoveChecks
from serve_apps.control.core import Core
from serve_apps.control.deployments import Deployments
from serve_apps.control.feedback import Feedback
from serve_apps.control.keys import Keys
from serve_apps.control.observations import Observations
from serve_apps.control.payload import Payload
from serve_apps.control.prefetching import Prefetching
from serve_apps.control.release_clock import ReleaseClock
from serve_apps.control.release_moves import ReleaseMoves
from serve_apps.control.releases import Releases
from serve_apps.control.slots import Slots
from serve_apps.control.supervisor import Supervisor
from serve_apps.control.tables import build_table
from serve_apps.stats import RouterReport
from serve_apps.table import RoutingTable

__all__ = ["ControlPlane"]

_log = logging.getLogger(__name__)
_BUSY_S = 0.5
_IDLE_S = 5.0
_BEAT_S = 1.0
_FAST_BEAT_S = 0.1
_ROUTER_GONE_S = 60.0


class ControlPlane:
    """`call` serves operators, `watch` and `report` serve routers; `run` is its heart-beat until `close`."""

    def __init__(self, core: Core, *, bucket: Bucket, random_key: Callable[[], str], drain_s: float = 5.0):
        self._core = core
        self.supervisor = Supervisor(core, drain_s=drain_s)
        checks = MoveChecks(core)
        self._deployments = Deployments(core, checks=checks)
        self._keys = Keys(core, random_key=random_key)
        self._seen = Observations()
        self._breakers = Breakers(core)
        self._slots = Slots(core)
        self._moves = ReleaseMoves(core, bucket=bucket, observations=self._seen)
        self._releases = Releases(core, moves=self._moves, observations=self._seen, checks=checks)
        self._clock = ReleaseClock(core, moves=self._moves, observations=self._seen, checks=checks)
        self._feedback = Feedback(core, self._seen)
        self._prefetching = Prefetching(core, self._seen, self.supervisor)
        self._reported = asyncio.Event()
        self._table: RoutingTable | None = None
        self._routers: dict[str, dict[str, Any]] = {}
        self._stopping = asyncio.Event()
        self._methods: dict[str, Callable[[Payload], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "models": self._deployments.models,
            "model": self._deployments.model,
            "plan": self._deployments.plan,
            "deploy": self._deployments.deploy,
            "deployment": self._deployments.deployment,
            "deployments": self._deployments.deployments,
            "retire": self._deployments.retire,
            "traffic": self._deployments.traffic,
            "release_plan": self._releases.plan,
            "release_start": self._releases.start,
            "release_show": self._releases.show,
            "release_status": self._releases.status,
            "release_history": self._releases.history,
            "release_promote": self._releases.promote,
            "release_pause": self._releases.pause,
            "release_resume": self._releases.resume,
            "release_rollback": self._releases.rollback,
            "promotions": self._releases.promotions,
            "promotion_record": self._releases.record_promotion,
            "breakers": self._breakers.list,
            "breaker_reset": self._breakers.reset,
            "slots": self._slots.view,
            "host_outcomes": self._breakers.report,
            "feedback": self._feedback.give,
            "forecast": self._prefetching.forecast,
            "models_wanted": self._prefetching.wanted,
            "keys_create": self._keys.create,
            "keys_list": self._keys.list,
            "keys_revoke": self._keys.revoke,
        }

    @property
    def core(self) -> Core:
        return self._core

    # ---- routers ----

    def table(self) -> RoutingTable:
        """The table of now."""
        if self._table is None or self._table.revision != self._core.state.revision:
            self._table = build_table(self._core.state)
        return self._table

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None:
        """A table newer than `revision`, as soon as there is one; None after `timeout_s`."""
        changed = await self._core.wait_change(revision, timeout_s)
        return self.table() if changed else None

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None:
        """Take in what a router saw (`serve_apps.stats.RouterReport`). A report that comes twice counts once."""
        report, now = RouterReport.from_wire(stats), self._core.now()
        before = self._routers.get(router_id)
        if before is not None and report.seq <= before["seq"]:
            return
        self._routers[router_id] = {"seq": report.seq, "revision": report.revision, "at": now}
        for router in [key for key, seen in self._routers.items() if now - seen["at"] > _ROUTER_GONE_S]:
            del self._routers[router]
        state = self._core.state
        rows = [row for row in report.versions if row.revision >= state.counts_since(row.model, row.version)]
        self._seen.add(replace(report, versions=rows), now)
        async with self._feedback.reported:
            self._feedback.reported.notify_all()
        await self._breakers.observe(report)
        if self._core.state.active:
            self._reported.set()

    # ---- run stores ----

    async def slots(self, report: Report, wait_s: float) -> Reply | None:
        """What a shard asks for and holds of the locks and queues that all shards share; see `Slots.exchange`."""
        return await self._slots.exchange(report, wait_s)

    # ---- operators ----

    async def adopt(self, wire: Mapping[str, Any]) -> None:
        """Take over the environment's settings from a configuration in wire form."""
        await self._deployments.adopt(wire)

    async def call(self, method: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """One operation. A caller that goes away does not stop it half-way."""
        handler = self._methods.get(method)
        if handler is None:
            raise NotFound(f"the control plane has no operation {method!r}: {', '.join(sorted(self._methods))}")
        return await asyncio.shield(asyncio.ensure_future(handler(Payload(method, payload))))

    async def _status(self, payload: Payload) -> dict[str, Any]:
        state, now = self._core.state, self._core.now()
        settings = state.settings or {}
        versions = [v for model in state.models.values() for v in model.versions.values()]
        return {
            "environment": settings.get("environment"),
            "revision": state.revision,
            "models": len(state.models),
            "versions": {
                status: sum(1 for v in versions if v.newest is not None and v.newest.status == status)
                for status in ("starting", "ready", "failed")
            },
            "draining": sorted(state.drains),
            "releases": dict(state.active),
            "keys": len(state.keys),
            "breakers": self._breakers.not_closed(),
            "unheard_shards": self._slots.unheard(),
            "routers": [
                {"id": router, "revision": seen["revision"], "seconds_ago": round(now - seen["at"], 1)}
                for router, seen in self._routers.items()
            ],
        }

    # ---- life ----

    async def run(self) -> None:
        """Supervise until `close` or until another owner has taken over."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._supervise())
            group.create_task(self._beat())

    async def beat(self) -> None:
        """What is due by time or by the last reports: breakers, releases, prefetching. Raises `Fenced`."""
        await self._breakers.tick()
        await self._clock.tick()
        await self._prefetching.tick()

    async def _beat(self) -> None:
        await self._safely(self._moves.record_promotions)
        while not self._stopping.is_set() and not self._core.fenced:
            self._reported.clear()
            await self._safely(self.beat)
            try:
                async with asyncio.timeout(_BEAT_S):
                    await self._reported.wait()
                    await asyncio.sleep(_FAST_BEAT_S)
            except TimeoutError:
                continue

    async def _safely(self, work: Callable[[], Awaitable[None]]) -> None:
        """A pass that fails is tried again; only a fence stops the plane."""
        try:
            await work()
        except Fenced:
            return
        except HeadraceError as error:
            _log.warning("the control plane's pass failed and is tried again: %s", error)
        except Exception:
            _log.exception("the control plane's pass failed and is tried again")

    async def _supervise(self) -> None:
        while not self._stopping.is_set() and not self._core.fenced:
            self._core.wake.clear()
            await self._safely(self.supervisor.step)
            await self._pause(_BUSY_S if self.supervisor.busy else _IDLE_S)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._core.wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(0.05)  # several changes in a row need one pass only

    async def close(self) -> None:
        self._stopping.set()
        self._core.wake.set()
        await self._clock.close()
        await self.supervisor.close()
        await self._core.journal.close()
