"""A run store's link to the control plane: hears its table, tells it what was seen of http hosts and which sleeping
models new runs will call, and asks it for the locks and queues that all shards share.

Without a control plane the last word stays in force, and only steps that need a shared slot wait. A port and an asyncio
shell; the port over Ray is at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from cluster.errors import CorruptObject, Fenced, HeadraceError, StorageError, Unavailable
from cluster.names import CONTROL_PLANE, NAMESPACE
from cluster.slots import Holder, Reply, Report
from pipelines.run_store.model_breakers import breaker_states, sleepers, with_deployed
from pipelines.run_store.service import RunStore

__all__ = ["ControlLink", "ControlPort", "RayControl"]

WATCH_S = 30.0
AGAIN_S = 1.0
GATHER_S = 1.0
_log = logging.getLogger(__name__)


class ControlPort(Protocol):
    """What a run store asks of the control plane. Raises `Unavailable` while it is away."""

    async def watch(self, revision: int, timeout_s: float) -> Any:
        """The routing table (`serve_apps.table.RoutingTable`) when it is newer than `revision`, else None."""
        ...

    async def call(self, method: str, payload: Mapping[str, Any]) -> Mapping[str, Any]: ...

    async def slots(self, report: Report, wait_s: float) -> Reply | None:
        """The arbiter's answer to a shard's report, when there is news for it or `wait_s` is over."""
        ...


class ControlLink:
    """`run` until cancelled."""

    def __init__(self, *, store: RunStore, control: ControlPort, again_s: float = AGAIN_S, gather_s: float = GATHER_S):
        self._store = store
        self._control = control
        self._again_s = again_s
        self._gather_s = gather_s
        self._at_start = store.known
        self._models: dict[str, str] = {}
        self._sleepers: frozenset[str] = frozenset()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear())
            group.create_task(self._tell())
            group.create_task(self._wake())
            slots = self._store.kernel.slots
            if slots is not None:
                group.create_task(self._ask_for_slots(slots))
                group.create_task(self._hear_of_slots(slots))

    async def _hear(self) -> None:
        revision = 0
        while True:
            try:
                table = await self._control.watch(revision, WATCH_S)
            except HeadraceError as error:
                if not error.retryable:
                    _log.warning("the control plane gives no table: %s", error)
                await asyncio.sleep(self._again_s)
                revision = 0
                continue
            if table is not None:
                revision = table.revision
                self.take(table)

    def take(self, table: Any) -> None:
        """A newer table: models, their breakers, and those of http hosts."""
        store = self._store
        store.known = with_deployed(self._at_start, table.models, table.routes)
        states = breaker_states(table.models)
        for model, state in states.items():
            if self._models.get(model, "closed") != state:
                store.set_breaker(f"model:{model}", state)
        for model in self._models.keys() - states.keys():
            store.set_breaker(f"model:{model}", "closed")
        self._models = states
        self._sleepers = sleepers(table.models)
        store.set_hosts(table.revision, table.hosts)

    async def _tell(self) -> None:
        outcomes, seen = self._store.kernel.outcomes, self._store.kernel.outcomes_changed
        while True:
            if not outcomes:
                seen.clear()
                await seen.wait()
            if not outcomes.urgent:
                try:
                    async with asyncio.timeout(self._gather_s):
                        while not outcomes.urgent:
                            seen.clear()
                            await seen.wait()
                except TimeoutError:
                    pass
            batch = outcomes.batch()
            if batch is None:
                continue
            try:
                await self._control.call("host_outcomes", batch)
            except HeadraceError as error:
                if not error.retryable:
                    _log.error("the control plane refuses what was seen of http hosts: %s", error)
                    outcomes.told()
                await asyncio.sleep(self._again_s)
            else:
                outcomes.told()

    async def _wake(self) -> None:
        """Only a hint: what cannot be said now is not said again, for the call itself wakes its model too."""
        kernel = self._store.kernel
        while True:
            await kernel.wanted_changed.wait()
            kernel.wanted_changed.clear()
            models = sorted(kernel.wanted & self._sleepers)
            kernel.wanted.clear()
            if models:
                try:
                    await self._control.call("models_wanted", {"models": models})
                except HeadraceError as error:
                    _log.info("the control plane was not told that runs will call %s: %s", ", ".join(models), error)
                await asyncio.sleep(self._gather_s)

    async def _ask_for_slots(self, slots: Holder) -> None:
        """Changes go at once; those that come while a message is on its way go together with the next one."""
        changed = self._store.kernel.slots_changed
        while True:
            if not slots.pending:
                changed.clear()
                await changed.wait()
            await self._exchange(slots, 0.0)

    async def _hear_of_slots(self, slots: Holder) -> None:
        while True:
            await self._exchange(slots, WATCH_S)

    async def _exchange(self, slots: Holder, wait_s: float) -> None:
        kernel = self._store.kernel
        if slots.greets and not await self._owns():
            # A shard that was replaced would take away what its successor holds.
            await asyncio.sleep(self._again_s)
            return
        try:
            reply = await self._control.slots(slots.report(), wait_s)
        except HeadraceError as error:
            if not error.retryable:
                _log.warning("the control plane gives no locks and queue slots: %s", error)
            reply = None
        if reply is None:
            await asyncio.sleep(self._again_s)
            return
        grants = slots.take(reply)
        if grants:
            kernel.granted(grants)

    async def _owns(self) -> bool:
        kernel = self._store.kernel
        try:
            await kernel.log.check_owner()
        except (Fenced, CorruptObject) as error:
            kernel.fatal(error)
            return False
        except StorageError:
            return False  # it could not be seen just now
        return True


class RayControl:
    """`ControlPort` over the control plane's actor, found by name and anew when it was replaced."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def watch(self, revision: int, timeout_s: float) -> Any:
        return await self._ask("watch", timeout_s + 15.0, revision, timeout_s)

    async def call(self, method: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = await self._ask("call", 15.0, method, dict(payload))
        return answer

    async def slots(self, report: Report, wait_s: float) -> Reply | None:
        reply: Reply | None = await self._ask("slots", wait_s + 15.0, report, wait_s)
        return reply

    async def _ask(self, name: str, timeout_s: float, *args: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            async with asyncio.timeout(timeout_s):
                if self._handle is None:
                    self._handle = await asyncio.to_thread(ray.get_actor, CONTROL_PLANE, namespace=NAMESPACE)
                return await getattr(self._handle, name).remote(*args)
        except RayTaskError as error:
            if isinstance(error.cause, HeadraceError):
                raise error.cause from None
            raise Unavailable(f"the control plane could not answer: {error.cause}") from error
        except (RayError, ValueError, TimeoutError) as error:
            self._handle = None
            raise Unavailable("the control plane is away") from error
