"""Runs the planner's batches in asyncio: hands every answer to its own caller, and isolates items that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.clock import Clock
from cluster.errors import Cancelled, DeadlineExceeded, HeadraceError, ModelError, Unavailable
from serve_apps.batching.planner import Batch, BatchPolicy, Planner, Ticket

__all__ = ["BatchAnswer", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer(Generic[R]):
    """One item's answer: how long it waited, how long its batch took, and how many items ran with it."""

    value: R
    queue_s: float
    compute_s: float
    batch_size: int


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    item: T
    future: asyncio.Future[BatchAnswer[R]]


class Batcher(Generic[T, R]):
    """`run(items)` answers a list as long as `items`; a place may hold an exception, which is that item's alone.

    When `run` raises, or answers with another number of values, the batch is split into halves and each is run again,
    so that only the item at fault fails. `may_retry(items)` can forbid that (a streamed answer can't be sent twice).
    `stoppable`: `run` ends when it is cancelled, and is, once nobody waits for any answer of its batch (a thread cannot
    be stopped, so a model that computes in one goes on to the end).
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        policy: BatchPolicy,
        *,
        clock: Clock,
        may_retry: Callable[[list[T]], bool] | None = None,
        stoppable: bool = False,
    ):
        self._run = run
        self._stoppable = stoppable
        self._clock = clock
        self._may_retry = may_retry
        self._planner = Planner(policy)
        self._entries: dict[int, _Entry[T, R]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_at: dict[asyncio.Task[None], float] = {}
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._planner.waiting

    @property
    def running(self) -> int:
        """Batches in the model."""
        return self._planner.running

    def longest_running_s(self) -> float:
        """How long the oldest running batch has run: a model that hangs shows here."""
        now = self._clock.monotonic()
        return max((now - started for started in self._started_at.values()), default=0.0)

    async def submit(
        self, item: T, *, priority: int | None = None, size: int = 1, deadline_s: float | None = None
    ) -> BatchAnswer[R]:
        """Wait for one item's answer. `deadline_s` is wall time since the epoch.

        Raises what the model raised for this item (as a `HeadraceError`), `Overloaded`, `DeadlineExceeded`, or
        `Unavailable` once the batcher drains. Cancelling the caller takes out this item only: a waiting one is never
        run, a running one's answer is dropped.
        """
        return await self.enqueue(item, priority=priority, size=size, deadline_s=deadline_s)

    def enqueue(
        self, item: T, *, priority: int | None = None, size: int = 1, deadline_s: float | None = None
    ) -> asyncio.Future[BatchAnswer[R]]:
        """As `submit`, without a coroutine per item: refusals are raised at once, cancel the future to take it out."""
        if self._closed:
            raise Unavailable("this host is shutting down", retry_after_s=1.0)
        now = self._clock.monotonic()
        until = None if deadline_s is None else now + (deadline_s - self._clock.now())
        ticket = self._planner.admit(now, priority=priority, size=size, deadline_s=until)
        future: asyncio.Future[BatchAnswer[R]] = asyncio.get_running_loop().create_future()
        self._entries[ticket.number] = _Entry(item, future)
        self._idle.clear()

        def drop(done: asyncio.Future[BatchAnswer[R]]) -> None:
            if done.cancelled() and self._planner.cancel(ticket):
                # `close` may have emptied the table between the cancelling and this call.
                self._entries.pop(ticket.number, None)
                self._settle()

        future.add_done_callback(drop)
        self._schedule()
        return future

    def _schedule(self) -> None:
        """Look for work after the current callbacks, so that items that arrive together are planned together."""
        now = self._clock.monotonic()
        wake = self._planner.wake_at(now)
        if wake is None:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, wake - now)
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        # uvloop gives a handle without `when()` for a time that has passed already, so the time is kept here.
        self._due = when
        self._timer = loop.call_at(when, self._pump)

    def _pump(self) -> None:
        self._timer = None
        while (batch := self._planner.next_batch(self._clock.monotonic())) is not None:
            for ticket in batch.expired:
                self._fail(ticket, DeadlineExceeded("the deadline passed while the item waited for the model"))
            if not batch.tickets:
                continue
            task = asyncio.get_running_loop().create_task(self._work(batch))
            self._tasks.add(task)
            self._started_at[task] = self._clock.monotonic()
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda done: self._started_at.pop(done, None))
        self._settle()
        self._schedule()

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        entry = self._entries.pop(ticket.number)
        if not entry.future.done():
            entry.future.set_exception(error)

    async def _work(self, batch: Batch) -> None:
        started = self._clock.monotonic()
        # A caller may have gone between planning and now.
        live = [t for t in batch.tickets if not self._entries[t.number].future.done()]
        outcomes: list[R | BaseException] = []
        try:
            if live and self._stoppable:
                self._stop_with_the_last([self._entries[t.number].future for t in live])
            if live:
                outcomes = await self._isolate([self._entries[t.number].item for t in live])
        except asyncio.CancelledError:
            outcomes = [Unavailable("the host stopped while this item ran") for _ in live]
            raise
        finally:
            now = self._clock.monotonic()
            clean = bool(outcomes) and not any(isinstance(o, BaseException) for o in outcomes)
            # A failed batch says nothing about how long good work takes.
            self._planner.finished(now, len(live), now - started, observe=clean)
            for ticket, outcome in zip(live, outcomes, strict=True):
                entry = self._entries[ticket.number]
                if entry.future.done():
                    continue
                if isinstance(outcome, BaseException):
                    entry.future.set_exception(outcome)
                else:
                    answer = BatchAnswer(
                        value=outcome,
                        queue_s=started - ticket.arrival_s,
                        compute_s=now - started,
                        batch_size=len(live),
                    )
                    entry.future.set_result(answer)
            for ticket in batch.tickets:
                del self._entries[ticket.number]
            self._settle()
            self._schedule()

    @staticmethod
    def _stop_with_the_last(futures: list[asyncio.Future[BatchAnswer[R]]]) -> None:
        """Cancel the running batch when the last of its callers has gone."""
        work = asyncio.current_task()

        def gone(future: asyncio.Future[BatchAnswer[R]]) -> None:
            if work is not None and future.cancelled() and all(other.done() for other in futures):
                work.cancel()

        for future in futures:
            future.add_done_callback(gone)

    async def _isolate(self, items: list[T]) -> list[R | BaseException]:
        """Run; on failure halve until the item at fault stands alone. Costs at most 2n - 1 calls."""
        error: BaseException
        try:
            outcomes = list(await self._run(items))
        except (Exception, SystemExit) as caught:
            error = caught
        else:
            if len(outcomes) == len(items):
                return [_as_headrace(o) if isinstance(o, BaseException) else o for o in outcomes]
            error = ModelError(f"the model answered {len(outcomes)} values to {len(items)} items")
        if len(items) == 1 or (self._may_retry is not None and not self._may_retry(items)):
            return [_as_headrace(error) for _ in items]
        half = len(items) // 2
        return [*await self._isolate(items[:half]), *await self._isolate(items[half:])]

    def _settle(self) -> None:
        if not self._entries:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new items, let the others finish for `timeout_s`, fail what is left. True when nothing was left."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        clean = not self._entries
        await self.close()
        return clean

    async def close(self) -> None:
        """Stop at once: whatever waits or runs fails with `Unavailable`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in self._entries.values():
            if not entry.future.done():
                entry.future.set_exception(Unavailable("the host stopped before this item ran", retry_after_s=1.0))
        self._entries.clear()
        self._idle.set()


def _as_headrace(error: BaseException) -> HeadraceError:
    """Errors of the house pass; anything else is the model's, named by its type and first line."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("the model's call was cancelled")
    text = str(error).strip().splitlines()
    return ModelError(f"the model raised {type(error).__name__}" + (f": {text[0][:500]}" if text else ""))
