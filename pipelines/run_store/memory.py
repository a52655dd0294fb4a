"""What a run store knows besides the engine: histories, idempotency keys, the outbox, the archive's manifest, breakers.

`ingest` and `apply` are the only ways in, for live facts and for replayed ones alike, so a restart finds the same
memory. Like the engine it may be ahead of the log; what is committed is marked (`History.shown`). No asyncio, no clock.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Mapping
from typing import Any

import orjson

from pipelines.engine.events import (
    Event,
    RunCancelled,
    RunEvicted,
    RunFailed,
    RunRestored,
    RunSubmitted,
    RunSucceeded,
)
from pipelines.run_store.archive import Archive
from pipelines.run_store.history import History, is_public
from pipelines.run_store.hosts import HostStates
from pipelines.run_store.idempotency import IdempotencyKeys
from pipelines.run_store.outbox import Delivery, Outbox, payload
from pipelines.run_store.records import (
    Archived,
    HostBreakerMoved,
    RunsCollected,
    StoreFact,
    WebhookAttempted,
    WebhookQueued,
)
from pipelines.run_store.runids import order_key

__all__ = ["Entry", "Memory", "delivery_of"]

_ENDED: dict[type[Any], str] = {RunSucceeded: "SUCCESS", RunFailed: "FAILED", RunCancelled: "CANCELLED"}


class Entry:
    """One run in memory, beside the engine's own state of it."""

    __slots__ = ("created_at", "history", "id", "last", "meta", "waiters", "workflow")

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.workflow = ""
        self.created_at = 0.0
        self.meta: Mapping[str, Any] = {}
        self.history = History()
        self.last: asyncio.Future[int] | None = None
        """The append that holds the newest facts of this run; shown state waits for it."""
        self.waiters: list[asyncio.Future[None]] = []


class Memory:
    """The run store's own state of one shard."""

    def __init__(self, *, archive: Archive) -> None:
        self.entries: dict[str, Entry] = {}
        self.keys = IdempotencyKeys()
        self.outbox = Outbox()
        self.archive = archive
        self.hosts = HostStates()
        self._order: list[str] = []
        self._by_order: dict[str, str] = {}

    def ingest(self, event: Event, record: bytes) -> Entry | None:
        """Take one fact of the engine and its log record; returns the run whose history got a line."""
        run_id: str | None = getattr(event, "run_id", None)
        if run_id is None:
            return None
        if isinstance(event, RunSubmitted):
            entry = self._add(run_id)
            self._submitted(entry, event)
        elif isinstance(event, RunEvicted):
            self._remove(run_id)
            return None
        elif isinstance(event, RunRestored):
            entry = self._add(run_id)
            self._restored(entry, event)
            return entry
        else:
            found = self.entries.get(run_id)
            if found is None:
                return None
            entry = found
            if isinstance(event, (RunSucceeded, RunFailed, RunCancelled)):
                self._ended(entry, event, _ENDED[type(event)])
        if is_public(event):
            entry.history.add(event, record)
        return entry

    def apply(self, fact: StoreFact) -> None:
        """Take one fact of the run store itself."""
        if isinstance(fact, Archived):
            self.archive.add(fact.segments)
        elif isinstance(fact, RunsCollected):
            self.archive.remove(fact.keys, runs=len(fact.run_ids), before=fact.before)
        elif isinstance(fact, WebhookAttempted):
            self.outbox.handle(fact.attempted)
        elif isinstance(fact, WebhookQueued):
            self.outbox.replay(fact.delivery)
        elif isinstance(fact, HostBreakerMoved):
            self.hosts.set(fact.host, fact.state)

    def newest(self, *, before: str | None, since: str) -> list[str]:
        """The ULIDs of runs in memory with `since` <= ULID < `before`, newest first. Quick, however many there are."""
        end = len(self._order) if before is None else bisect.bisect_left(self._order, before)
        found = self._order[bisect.bisect_left(self._order, since) : end]
        found.reverse()
        return found

    def run_with(self, ulid: str) -> str | None:
        """The id of the run in memory that has this ULID."""
        return self._by_order.get(ulid)

    def to_state(self) -> dict[str, Any]:
        """JSON-like state for a snapshot."""
        return {
            **self.rest_of_state(),
            "entries": [_entry_state(entry) for entry in self.entries.values()],
            "keys": self.keys.to_state(),
        }

    def entry_bytes(self, run_id: str) -> bytes:
        """One of `entries` in `to_state`, as JSON text."""
        return orjson.dumps(_entry_state(self.entries[run_id]))

    def rest_of_state(self) -> dict[str, Any]:
        """`to_state` without what there is one of per run."""
        return {
            "outbox": self.outbox.to_state(),
            "archive": self.archive.to_state(),
            "collected": [self.archive.collected.runs, self.archive.collected.before],
            "hosts": self.hosts.to_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a snapshot's state."""
        for run_id, workflow, created_at, meta, history in state["entries"]:
            entry = Entry(run_id)
            entry.workflow, entry.created_at, entry.meta = workflow, created_at, meta
            entry.history = History.from_state(history)
            self.entries[run_id] = entry
            key = order_key(run_id)
            self._by_order[key] = run_id
        self._order = sorted(self._by_order)
        self.keys.restore(state["keys"])
        self.outbox = Outbox.from_state(state["outbox"])
        self.archive.restore(state["archive"], state.get("collected"))
        self.hosts.restore(state["hosts"])

    def _add(self, run_id: str) -> Entry:
        entry = Entry(run_id)
        self.entries[run_id] = entry
        key = order_key(run_id)
        self._by_order[key] = run_id
        if not self._order or key > self._order[-1]:
            self._order.append(key)
        else:
            bisect.insort(self._order, key)
        return entry

    def _remove(self, run_id: str) -> None:
        entry = self.entries.pop(run_id, None)
        if entry is None:
            return
        key = order_key(run_id)
        self._by_order.pop(key, None)
        at = bisect.bisect_left(self._order, key)
        if at < len(self._order) and self._order[at] == key:
            del self._order[at]

    def _submitted(self, entry: Entry, event: RunSubmitted) -> None:
        entry.workflow, entry.created_at, entry.meta = event.workflow, event.at, event.meta or {}
        key = entry.meta.get("key")
        if key:
            self.keys.accept(key, entry.meta["body"], event.run_id, at=event.at)

    def _restored(self, entry: Entry, event: RunRestored) -> None:
        record = event.record
        entry.workflow, entry.created_at = record["workflow"], record["created_at"]
        entry.meta = record.get("meta") or {}
        if "history" in record:
            entry.history = History.from_state(record["history"])

    def _ended(self, entry: Entry, event: RunSucceeded | RunFailed | RunCancelled, state: str) -> None:
        url = (entry.meta.get("webhook") or {}).get("url")
        if not url:
            return
        view = {
            "id": entry.id,
            "workflow": entry.workflow,
            "state": state,
            "created_at": entry.created_at,
            "finished_at": event.at,
            "error": getattr(event, "error", None),
            "output": getattr(event, "output", None),
        }
        self.outbox.add(delivery_of(view, url))


def _entry_state(entry: Entry) -> list[Any]:
    return [entry.id, entry.workflow, entry.created_at, entry.meta, entry.history.to_state()]


def delivery_of(view: Mapping[str, Any], url: str, *, next_at: float | None = None) -> Delivery:
    """The message that tells of a run's end. Its id names that end: one after a resume is another message."""
    at = float(view["finished_at"])
    return Delivery(
        id=f"msg_{view['id']}_{int(at * 1000):x}",
        run_id=view["id"],
        url=url,
        payload=payload(view),
        next_at=at if next_at is None else next_at,
    )
