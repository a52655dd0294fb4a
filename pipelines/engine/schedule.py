"""Which ready attempt starts next: named queues, one limit over all, locks across runs, priority with ageing.

Rank = time of becoming ready + priority * `ageing_s`: a waiting attempt overtakes one level per `ageing_s`, so nothing
starves, and ranks never change while waiting, so a heap is enough. Nothing is logged: a crash rebuilds all of it.

Where several shards share locks and named queues (`send` is given), an attempt that needs one asks for it under a
ticket and joins when it was granted; all else is as with one shard. Every ticket is given up exactly once: when the
attempt ended, did not start after all, or is not wanted any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.slots.protocol import Ask
from pipelines.engine.commands import AskSlot, Command, SlotDone
from pipelines.engine.runs import Run, Step, Unit

__all__ = ["Ready", "Scheduler"]


@dataclass(slots=True, eq=False)
class Ready:
    """A unit that may start. `lock` is its rendered concurrency key, None when it needs none. `ticket`: what it asked
    the other shards' arbiter for, or was granted; `fence` is the grant's."""

    run: Run
    index: int
    item: int | None
    unit: Unit
    rank: float
    queue: str
    lock: str | None = None
    lock_limit: int = 0
    ticket: int | None = None
    fence: int | None = None

    @property
    def step(self) -> Step:
        return self.run.steps[self.index]

    def about(self) -> dict[str, Any]:
        """Names it for people."""
        return {"run_id": self.run.id, "step": self.run.plan.steps[self.index].id, "item": self.item}

    @property
    def lock_fence(self) -> int | None:
        """Under which its lock was granted, where others grant it."""
        return self.fence if self.lock is not None else None

    @property
    def stale(self) -> bool:
        """Whether the run ended, or the unit was taken or replaced, since this was queued."""
        if self.run.ended or self.unit.waiting is None:
            return True
        step = self.step
        if self.item is None:
            return step.unit is not self.unit
        return step.items is None or step.items.units.get(self.item) is not self.unit


def _row(rows: dict[str, dict[str, Any]], name: str, limit: int) -> dict[str, Any]:
    return rows.setdefault(name, {"name": name, "limit": limit, "held": [], "waiting": []})


@dataclass(slots=True)
class _Lock:
    held: int = 0
    waiters: list[tuple[float, int, Ready]] = field(default_factory=list)


class Scheduler:
    """`max_running` bounds attempts in flight over all queues; `queues` bounds single ones."""

    def __init__(
        self,
        *,
        max_running: int,
        queues: Mapping[str, int],
        ageing_s: float,
        send: Callable[[Command], None] | None = None,
    ):
        self.max_running = max_running
        self.queues = dict(queues)
        self.ageing_s = ageing_s
        self.running: dict[int, tuple[str, str | None]] = {}
        self.running_in: dict[str, int] = {}
        self.locks: dict[str, _Lock] = {}
        self.tickets: dict[int, Ready] = {}
        """What was asked for, or granted and not started."""
        self._send = send
        self._ticket = 0
        self._tickets_of: dict[str, dict[int, None]] = {}
        self._granted: list[tuple[float, int, Ready]] = []
        self._holding: dict[int, Ready] = {}
        """What runs, by its fence."""
        self._heaps: dict[str, list[tuple[float, int, Ready]]] = {}
        self._sequence = 0

    def rank(self, now: float, priority: int) -> float:
        """Smaller starts first."""
        return now + priority * self.ageing_s

    def push(self, ready: Ready) -> None:
        """Queue a unit."""
        needs = self._needs(ready) if self._send is not None else ()
        if needs:
            self._ask(ready, needs)
            return
        self._sequence += 1
        self._waits_in_queue(ready)
        heapq.heappush(self._heaps.setdefault(ready.queue, []), (ready.rank, self._sequence, ready))

    def take(self) -> Ready | None:
        """The unit that starts next, or None when nothing is ready or nothing has room. Its lock is free."""
        while len(self.running) < self.max_running:
            # What others wait for is not held longer than it must be.
            if self._granted:
                ready = heapq.heappop(self._granted)[2]
                if ready.ticket is None:
                    continue
                if ready.stale:
                    self._give_up(ready)
                    continue
                return ready
            best: list[tuple[float, int, Ready]] | None = None
            for name, heap in self._heaps.items():
                if not heap or self.running_in.get(name, 0) >= self.queues.get(name, self.max_running):
                    continue
                if best is None or heap[0] < best[0]:
                    best = heap
            if best is None:
                return None
            entry = heapq.heappop(best)
            ready = entry[2]
            if ready.stale:
                if ready.lock is not None:
                    # It may have been the one that was woken when its lock became free.
                    self._wake(ready.lock)
                continue
            if ready.lock is not None:
                lock = self.locks.setdefault(ready.lock, _Lock())
                if lock.held >= ready.lock_limit:
                    ready.unit.waiting, ready.unit.waits_on = "lock", ready.lock
                    heapq.heappush(lock.waiters, entry)
                    continue
            return ready
        return None

    def start(self, ready: Ready, fence: int) -> None:
        """A unit that `take` gave is running now under this fence."""
        self.running_in[ready.queue] = self.running_in.get(ready.queue, 0) + 1
        self._holding[fence] = ready
        if ready.ticket is not None:
            self.running[fence] = (ready.queue, None)
            self._forget_ticket(ready)
            return
        self.running[fence] = (ready.queue, ready.lock)
        if ready.lock is not None:
            self.locks.setdefault(ready.lock, _Lock()).held += 1

    def dropped(self, ready: Ready) -> None:
        """A unit that `take` gave does not start now: somebody else who waits for its lock may."""
        if ready.ticket is not None:
            self._give_up(ready)
        elif ready.lock is not None:
            self._wake(ready.lock)

    def finish(self, fence: int) -> None:
        """The work with this fence has ended: its slot and lock are free. Unknown fences are of an earlier process."""
        entry = self.running.pop(fence, None)
        if entry is None:
            return
        queue, lock_key = entry
        self.running_in[queue] -= 1
        ready = self._holding.pop(fence)
        if ready.ticket is not None and self._send is not None:
            self._send(SlotDone(ticket=ready.ticket))
        if lock_key is not None:
            self.locks[lock_key].held -= 1
            self._wake(lock_key)

    def granted(self, ticket: int, fence: int) -> None:
        """What was asked for under this ticket may start. One that nobody wants any more was given up before."""
        ready = self.tickets.get(ticket)
        if ready is None:
            return
        if ready.stale:
            self._give_up(ready)
            return
        ready.fence = fence
        self._waits_in_queue(ready)
        heapq.heappush(self._granted, (ready.rank, ticket, ready))

    def forget(self, run: Run) -> None:
        """The run ended: what it asked for is not wanted any more."""
        for ticket in list(self._tickets_of.get(run.id, ())):
            self._give_up(self.tickets[ticket])

    def waiting(self) -> dict[str, int]:
        """Entries per queue, for metrics; may count units that are stale by now."""
        counts = {name: len(heap) for name, heap in self._heaps.items() if heap}
        for ready in self.tickets.values():
            counts[ready.queue] = counts.get(ready.queue, 0) + 1
        return counts

    def waiting_for_locks(self) -> int:
        """Entries that wait for a lock, for metrics; may count units that are stale by now."""
        return sum(len(lock.waiters) for lock in self.locks.values())

    def slots(self) -> list[dict[str, Any]]:
        """Who holds and who waits for each lock and named queue, as this shard knows it, for people: `{name, limit,
        held: [{run_id, step, item, fence}], waiting: [{run_id, step, item, rank}]}`, next one first. It walks over
        everything."""
        rows: dict[str, dict[str, Any]] = {}
        for fence, ready in self._holding.items():
            for name, limit in self._needs(ready):
                _row(rows, name, limit)["held"].append({**ready.about(), "fence": ready.fence or fence})
        waiting = [entry[2] for heap in self._heaps.values() for entry in heap]
        waiting += [entry[2] for lock in self.locks.values() for entry in lock.waiters]
        for ready in [*waiting, *self.tickets.values()]:
            if not ready.stale:
                for name, limit in self._needs(ready):
                    _row(rows, name, limit)["waiting"].append({**ready.about(), "rank": ready.rank})
        for row in rows.values():
            row["waiting"].sort(key=lambda one: one["rank"])
        return [rows[name] for name in sorted(rows)]

    # ---- inside ----

    def _waits_in_queue(self, ready: Ready) -> None:
        ready.unit.waiting, ready.unit.waits_on = "queue", ready.queue

    def _needs(self, ready: Ready) -> tuple[tuple[str, int], ...]:
        limit = self.queues.get(ready.queue)
        queue = () if limit is None else ((f"queue:{ready.queue}", limit),)
        return queue if ready.lock is None else (*queue, (f"lock:{ready.lock}", ready.lock_limit))

    def _ask(self, ready: Ready, needs: tuple[tuple[str, int], ...]) -> None:
        self._ticket += 1
        ready.ticket, ready.fence = self._ticket, None
        self.tickets[self._ticket] = ready
        self._tickets_of.setdefault(ready.run.id, {})[self._ticket] = None
        if ready.lock is None:
            self._waits_in_queue(ready)
        else:
            ready.unit.waiting, ready.unit.waits_on = "lock", ready.lock
        about = ready.about()
        text = f"{about['run_id']} {about['step']}" + ("" if ready.item is None else f"[{ready.item}]")
        assert self._send is not None
        self._send(AskSlot(ask=Ask(ticket=self._ticket, rank=ready.rank, needs=needs, about=text)))

    def _give_up(self, ready: Ready) -> None:
        ticket = ready.ticket
        assert ticket is not None
        assert self._send is not None
        self._forget_ticket(ready)
        ready.ticket = ready.fence = None
        self._send(SlotDone(ticket=ticket))

    def _forget_ticket(self, ready: Ready) -> None:
        assert ready.ticket is not None
        del self.tickets[ready.ticket]
        mine = self._tickets_of[ready.run.id]
        del mine[ready.ticket]
        if not mine:
            del self._tickets_of[ready.run.id]

    def _wake(self, key: str) -> None:
        lock = self.locks.get(key)
        if lock is None:
            return
        while lock.waiters:
            entry = heapq.heappop(lock.waiters)
            if not entry[2].stale:
                self._waits_in_queue(entry[2])
                heapq.heappush(self._heaps.setdefault(entry[2].queue, []), entry)
                return
        if not lock.held:
            del self.locks[key]
