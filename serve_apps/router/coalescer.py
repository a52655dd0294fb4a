"""Merges concurrent calls to one host into one hop: a hop costs the same for one request as for fifty.

A call goes at once while fewer than `max_in_flight` hops are under way (calls of the same turn of the event loop go
together). Otherwise it waits until a hop returns, but never longer than `max_wait_s`: then it goes whatever is under
way.

A hop's answers come back together, so an urgent call, or one that is refused at once, waits for the slowest of its
hop. Where the model's own work counts for more than the hop, a hop is therefore given only as many calls as are done in
`hop_work_s`: calls to a slow model go alone, and its host's queue decides about their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cluster.errors import HeadraceError, InternalError, Unavailable
from serve_apps.protocol import InferRequest, InferResult

__all__ = ["Coalescer"]

_Item = tuple[InferRequest, "asyncio.Future[InferResult]"]


class Coalescer:
    """All calls of one event loop to one host. `merge=False`: each call is its own hop, at once."""

    def __init__(
        self,
        send: Callable[[Sequence[InferRequest]], Awaitable[list[InferResult]]],
        *,
        merge: bool = True,
        max_in_flight: int = 2,
        max_merged: int = 64,
        max_wait_s: float = 0.005,
        hop_work_s: float = 0.05,
    ):
        self._send = send
        self.merge = merge
        self.max_in_flight = max_in_flight
        self.max_merged = max_merged
        self.max_wait_s = max_wait_s
        self.hop_work_s = hop_work_s
        self._call_s = 0.0
        self._queue: deque[_Item] = deque()
        self._hops: dict[asyncio.Task[None], list[_Item]] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self.sizes: dict[int, int] = {}
        """Hops by the number of calls in them; whoever reads it may empty it."""

    @property
    def waiting(self) -> int:
        """Calls that wait for a hop."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Hops under way."""
        return len(self._hops)

    @property
    def hop_size(self) -> int:
        """How many calls may share the next hop, by what the model's work on one call took lately."""
        if not self.merge:
            return 1
        if self._call_s * self.max_merged <= self.hop_work_s:
            return self.max_merged
        return max(1, int(self.hop_work_s / self._call_s))

    def _learn(self, results: Sequence[InferResult]) -> None:
        """Seconds of the model's work per call: a batch's time over its size. Half of what is known is the last hop."""
        times = [result.compute_s / result.batch_size for result in results if result.batch_size > 0]
        if times:
            self._call_s = (self._call_s + sum(times) / len(times)) / 2

    async def submit(self, request: InferRequest) -> InferResult:
        """The host's answer to `request`. Raises what kept the whole hop from being answered, as a HeadraceError.

        Cancelling takes out this call only; a hop whose last caller has gone is cancelled too.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[InferResult] = loop.create_future()
        self._queue.append((request, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._pump)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(future)
            raise

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and (not self.merge or len(self._hops) < self.max_in_flight):
            self._start_hop()
        if self._queue:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self.max_wait_s, self._on_timer)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        while self._queue:
            self._start_hop()

    def _start_hop(self) -> None:
        size = self.hop_size
        batch: list[_Item] = []
        while self._queue and len(batch) < size:
            item = self._queue.popleft()
            if not item[1].done():
                batch.append(item)
        if not batch:
            return
        self.sizes[len(batch)] = self.sizes.get(len(batch), 0) + 1
        task = asyncio.get_running_loop().create_task(self._hop(batch))
        self._hops[task] = batch
        task.add_done_callback(self._on_hop_done)

    async def _hop(self, batch: list[_Item]) -> None:
        try:
            results = await self._send([request for request, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                if not future.done():
                    future.set_exception(Unavailable("the call to the host was given up"))
            raise
        except HeadraceError as error:
            _fail(batch, error)
            return
        except Exception as error:
            _fail(batch, Unavailable(f"the host could not be reached: {type(error).__name__}: {error!s:.300}"))
            return
        if len(results) != len(batch):
            _fail(batch, InternalError(f"the host answered {len(results)} of {len(batch)} requests"))
            return
        self._learn(results)
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    def _on_hop_done(self, task: asyncio.Task[None]) -> None:
        self._hops.pop(task, None)
        if self._queue:
            self._pump()

    def _abandon(self, future: asyncio.Future[InferResult]) -> None:
        for index, (_, waiting) in enumerate(self._queue):
            if waiting is future:
                del self._queue[index]
                return
        for task, batch in self._hops.items():
            if any(mine is future for _, mine in batch):
                if all(mine.done() for _, mine in batch):
                    task.cancel()
                return

    async def close(self) -> None:
        """Give up everything: callers get Unavailable."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queued = list(self._queue)
        self._queue.clear()
        _fail(queued, Unavailable("the router is stopping"))
        hops = dict(self._hops)
        for task in hops:
            task.cancel()
        await asyncio.gather(*hops, return_exceptions=True)
        for batch in hops.values():
            # A hop that was cancelled before its first turn could tell nobody.
            _fail(batch, Unavailable("the router is stopping"))


def _fail(batch: Sequence[_Item], error: HeadraceError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
