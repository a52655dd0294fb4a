"""The control plane's state behind its log: nothing is visible before it is durable. No Ray, no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from cluster.clock import Clock, IdSource
from cluster.errors import Fenced, NotFound, StorageError
from serve_apps.control.apply import apply
from serve_apps.control.events import decode_event, encode_event
from serve_apps.control.ports import Deployer, Journal
from serve_apps.control.state import ControlState, ModelState

__all__ = ["Core"]

_log = logging.getLogger(__name__)


class Core:
    """State, log and what waits for changes. Whoever decides something holds `lock` from reading to `write`."""

    def __init__(
        self,
        *,
        journal: Journal,
        deployer: Deployer,
        clock: Clock,
        ids: IdSource,
        snapshot: bytes | None = None,
        records: Sequence[bytes] = (),
        snapshot_every: int = 2000,
        on_fenced: Callable[[], None] = lambda: None,
    ):
        self.journal = journal
        self.deployer = deployer
        self.clock = clock
        self.ids = ids
        self.lock = asyncio.Lock()
        self.changed = asyncio.Condition()
        self.wake = asyncio.Event()
        """Set when something was written: the supervisor looks at once instead of at its next tick."""
        self.messages: dict[str, str] = {}
        """What the cluster says about applications that are starting: shown, never recorded."""
        self.hindered: dict[str, str] = {}
        """Why applications lack replicas, where that is known: shown, never recorded."""
        self.fenced = False
        self._on_fenced = on_fenced
        self._snapshot_every = snapshot_every
        self._since_snapshot = len(records)
        self.state = ControlState.model_validate_json(snapshot) if snapshot else ControlState()
        for record in records:
            apply(self.state, decode_event(record))

    def now(self) -> float:
        return self.clock.now()

    async def write(self, *events: Any) -> None:
        """Make facts durable, then true. The caller holds `lock`. Raises `Fenced`, or another `StorageError` with which
        the log has stopped; either stops this owner for good."""
        if not events:
            return
        if self.fenced:
            raise Fenced("another control plane has taken over: ask again, the call goes to the new one")
        try:
            await self.journal.append([encode_event(event) for event in events])
        except StorageError as error:
            # Also when it is no fence: the log takes nothing more, and whether it holds these facts only a new start
            # can tell. Going on would answer from a memory that is behind the log.
            _log.error("this control plane stops, its log cannot be written any more: %s", error)
            self._stop()
            raise
        for event in events:
            apply(self.state, event)
        self.wake.set()
        async with self.changed:
            self.changed.notify_all()
        self._since_snapshot += len(events)
        if self._since_snapshot >= self._snapshot_every:
            await self._snapshot()

    async def check_owner(self) -> None:
        """Raises `Fenced` (and stops this owner for good) when another control plane has taken over."""
        try:
            await self.journal.check_owner()
        except Fenced:
            self._stop()
            raise

    def _stop(self) -> None:
        self.fenced = True
        self._on_fenced()

    async def _snapshot(self) -> None:
        try:
            await self.journal.snapshot(self.state.model_dump_json().encode())
        except Fenced:
            self._stop()
            raise
        except Exception as error:
            # The log alone holds everything; replay only takes longer. The next write tries again.
            _log.warning("the control plane's snapshot could not be written: %s", error)
            return
        self._since_snapshot = 0

    async def wait_change(self, revision: int, timeout_s: float) -> bool:
        """Until the table is newer than `revision`; False when `timeout_s` passed first."""

        async def differs() -> None:
            async with self.changed:
                await self.changed.wait_for(lambda: self.state.revision > revision)

        if self.state.revision > revision:
            return True
        try:
            await asyncio.wait_for(differs(), timeout_s)
        except TimeoutError:
            return False
        return True

    def model(self, name: str) -> ModelState:
        """The model, or `NotFound` with the names there are."""
        model = self.state.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.state.models))
            there = f"there are: {known}" if known else "none is deployed"
            raise NotFound(f"no model {name!r} ({there})", details={"model": name})
        return model
