"""Merging: ready inference attempts of any runs for one model travel as one call, and each gets its own answer.

Knows no Ray: the call itself is passed in. Cancelling an attempt removes only its own item.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from cluster.errors import HeadraceError, InternalError
from pipelines.executor.errors import StepTimeout
from pipelines.executor.port import Attempt, Outcome

__all__ = ["BatchCall", "InferenceMerger"]

BatchCall = Callable[[Sequence[Attempt]], Awaitable[Sequence[Outcome]]]
"""One merged call for attempts of one model: outcomes in the same order. Raising fails all of them alike."""


@dataclass(eq=False)
class _Item:
    attempt: Attempt
    done: asyncio.Future[Outcome]
    call: _Call | None = None


@dataclass(eq=False)
class _Call:
    """One merged call in flight: it is given up when nobody waits for any of its items."""

    items: list[_Item]
    task: asyncio.Task[None] | None = None


@dataclass(eq=False)
class _Lane:
    """The waiting attempts of one model, and the calls in flight for it."""

    waiting: deque[_Item] = field(default_factory=deque)
    in_flight: int = 0
    timer: asyncio.TimerHandle | None = None


class InferenceMerger:
    """Collects attempts per model for `delay_s`, or until `max_batch`, with at most `max_in_flight` calls per model.

    While that many calls are out, attempts wait and the next call takes all that fit: under load batches grow by
    themselves, and when idle an attempt waits `delay_s` at most.
    """

    def __init__(self, *, call: BatchCall, max_batch: int = 32, delay_s: float = 0.003, max_in_flight: int = 4):
        self._call = call
        self._max_batch = max_batch
        self._delay_s = delay_s
        self._max_in_flight = max_in_flight
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, attempt: Attempt) -> Outcome:
        """The attempt's own outcome. Its timeout counts from here, waiting included."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        item = _Item(attempt, loop.create_future())
        lane = self._lanes.setdefault(attempt.model or "", _Lane())
        lane.waiting.append(item)
        self._schedule(lane)
        try:
            async with asyncio.timeout(attempt.timeout_s):
                return await item.done
        except TimeoutError:
            error = StepTimeout(
                f"step {attempt.step_id}: model {attempt.model} did not answer within {attempt.timeout_s:g} s",
                details={"timeout_s": attempt.timeout_s, "model": attempt.model},
            )
            return Outcome(status="timeout", error=error.to_dict(), duration_s=time.monotonic() - started)
        finally:
            # An item that nobody waits for any more takes no place in a later call, and keeps no call alive.
            item.done.cancel()
            call = item.call
            if call is not None and call.task is not None and all(other.done.done() for other in call.items):
                call.task.cancel()

    async def close(self) -> None:
        """Cancels the calls in flight."""
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _schedule(self, lane: _Lane) -> None:
        if lane.in_flight >= self._max_in_flight or not lane.waiting:
            return
        if len(lane.waiting) >= self._max_batch:
            self._send(lane)
        elif lane.timer is None:
            lane.timer = asyncio.get_running_loop().call_later(self._delay_s, self._due, lane)

    def _due(self, lane: _Lane) -> None:
        lane.timer = None
        if lane.in_flight < self._max_in_flight:
            self._send(lane)

    def _send(self, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        call = _Call([])
        while lane.waiting and len(call.items) < self._max_batch:
            item = lane.waiting.popleft()
            if not item.done.done():
                item.call = call
                call.items.append(item)
        if not call.items:
            return
        lane.in_flight += 1
        call.task = asyncio.create_task(self._deliver(lane, call.items))
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)
        self._schedule(lane)

    async def _deliver(self, lane: _Lane, batch: list[_Item]) -> None:
        try:
            outcomes = await self._call([item.attempt for item in batch])
            if len(outcomes) != len(batch):
                raise InternalError(f"{len(batch)} inference steps were sent and {len(outcomes)} answers came")
            for item, outcome in zip(batch, outcomes, strict=True):
                if not item.done.done():
                    item.done.set_result(outcome)
        except asyncio.CancelledError:
            for item in batch:
                item.done.cancel()
            raise
        except Exception as error:
            known = error if isinstance(error, HeadraceError) else InternalError(f"{type(error).__name__}: {error}")
            for item in batch:
                if not item.done.done():
                    item.done.set_result(Outcome(status="failed", error=known.to_dict()))
        finally:
            lane.in_flight -= 1
            self._schedule(lane)
