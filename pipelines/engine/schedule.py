"""Which ready attempt starts next: named queues, one limit over all, locks across runs, priority with ageing.

Rank = time of becoming ready + priority * `ageing_s`: a waiting attempt overtakes one level per `ageing_s`, so nothing
starves, and ranks never change while waiting, so a heap is enough. Nothing is logged: a crash rebuilds all of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.engine.runs import Run, Step, Unit

__all__ = ["Ready", "Scheduler"]


@dataclass(slots=True, eq=False)
class Ready:
    """A unit that may start. `lock` is its rendered concurrency key, None when it needs none."""

    run: Run
    index: int
    item: int | None
    unit: Unit
    rank: float
    queue: str
    lock: str | None = None
    lock_limit: int = 0

    @property
    def step(self) -> Step:
        return self.run.steps[self.index]

    @property
    def stale(self) -> bool:
        """Whether the run ended, or the unit was taken or replaced, since this was queued."""
        if self.run.ended or self.unit.waiting is None:
            return True
        step = self.step
        if self.item is None:
            return step.unit is not self.unit
        return step.items is None or step.items.units.get(self.item) is not self.unit


@dataclass(slots=True)
class _Lock:
    held: int = 0
    waiters: list[tuple[float, int, Ready]] = field(default_factory=list)


class Scheduler:
    """`max_running` bounds attempts in flight over all queues; `queues` bounds single ones."""

    def __init__(self, *, max_running: int, queues: Mapping[str, int], ageing_s: float):
        self.max_running = max_running
        self.queues = dict(queues)
        self.ageing_s = ageing_s
        self.running: dict[int, tuple[str, str | None]] = {}
        self.running_in: dict[str, int] = {}
        self.locks: dict[str, _Lock] = {}
        self._heaps: dict[str, list[tuple[float, int, Ready]]] = {}
        self._sequence = 0

    def rank(self, now: float, priority: int) -> float:
        """Smaller starts first."""
        return now + priority * self.ageing_s

    def push(self, ready: Ready) -> None:
        """Queue a unit."""
        self._sequence += 1
        ready.unit.waiting = "queue"
        heapq.heappush(self._heaps.setdefault(ready.queue, []), (ready.rank, self._sequence, ready))

    def take(self) -> Ready | None:
        """The unit that starts next, or None when nothing is ready or nothing has room. Its lock is free."""
        while len(self.running) < self.max_running:
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
                continue
            if ready.lock is not None:
                lock = self.locks.setdefault(ready.lock, _Lock())
                if lock.held >= ready.lock_limit:
                    ready.unit.waiting = "lock"
                    heapq.heappush(lock.waiters, entry)
                    continue
            return ready
        return None

    def start(self, ready: Ready, fence: int) -> None:
        """A unit that `take` gave is running now under this fence."""
        self.running[fence] = (ready.queue, ready.lock)
        self.running_in[ready.queue] = self.running_in.get(ready.queue, 0) + 1
        if ready.lock is not None:
            self.locks.setdefault(ready.lock, _Lock()).held += 1

    def dropped(self, ready: Ready) -> None:
        """A unit that `take` gave does not start now: somebody else who waits for its lock may."""
        if ready.lock is not None:
            self._wake(ready.lock)

    def finish(self, fence: int) -> None:
        """The work with this fence has ended: its slot and lock are free. Unknown fences are of an earlier process."""
        entry = self.running.pop(fence, None)
        if entry is None:
            return
        queue, lock_key = entry
        self.running_in[queue] -= 1
        if lock_key is not None:
            self.locks[lock_key].held -= 1
            self._wake(lock_key)

    def _wake(self, key: str) -> None:
        lock = self.locks.get(key)
        if lock is None:
            return
        while lock.waiters:
            entry = heapq.heappop(lock.waiters)
            if not entry[2].stale:
                entry[2].unit.waiting = "queue"
                heapq.heappush(self._heaps.setdefault(entry[2].queue, []), entry)
                return
        if not lock.held:
            del self.locks[key]

    def waiting(self) -> dict[str, int]:
        """Entries per queue, for metrics; may count units that are stale by now."""
        return {name: len(heap) for name, heap in self._heaps.items() if heap}
