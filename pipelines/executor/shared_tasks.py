"""Attempts of short steps that share a task: collected, sent together, and each given its own end.

Knows no Ray: how a group is sent is passed in. What becomes of a group: its task answers (nearly always); or it is
late, then its worker says which attempt it is busy with, starts no further one, and the others are handed back; or it
dies or stays silent, then all that have no outcome are handed back. An attempt that was handed back has not failed:
its caller runs it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.executor.sharing import SharingRules, group

__all__ = ["Lane", "LateReport", "SharedTask", "WorkerLost"]

_MARGIN_S = 0.1
_ASK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class LateReport:
    """What a late task's worker says: the outcomes so far, in order. With the attempt after these it is busy since
    `running_s`; it starts none after that."""

    outcomes: Sequence[bytes]
    running_s: float


class SharedTask(Protocol):
    """One group under way."""

    async def results(self) -> Sequence[bytes]:
        """Outcomes of the first so many of the group, in order. Raises what ended the task instead."""
        ...

    async def report(self) -> LateReport | None:
        """What the worker has said, if it found itself late."""
        ...

    async def stop(self, *, force: bool) -> None:
        """Ends the work: politely first, or (`force`) at once. Returns when it has ended."""
        ...


class WorkerLost(Exception):
    """The task of the one attempt that was running ended by `cause`, `ran_s` after the attempt began."""

    def __init__(self, cause: BaseException, ran_s: float):
        super().__init__(str(cause))
        self.cause = cause
        self.ran_s = ran_s


class _Item:
    """One attempt. It is settled once: with its outcome, with None (handed back) or with an error."""

    __slots__ = ("batch", "done", "expected_s", "gone", "payload", "settled")

    def __init__(self, payload: bytes, expected_s: float, done: asyncio.Future[bytes | None]):
        self.payload = payload
        self.expected_s = expected_s
        self.done = done
        self.batch: _Batch | None = None
        self.settled = False
        self.gone: asyncio.Future[None] | None = None

    def settle(self, outcome: bytes | BaseException | None) -> None:
        if self.settled:
            return
        self.settled = True
        if not self.done.done():
            if isinstance(outcome, BaseException):
                self.done.set_exception(outcome)
            else:
                self.done.set_result(outcome)
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)


class Lane:
    """The waiting attempts of one shape of task, and the tasks under way for them.

    `slots` gives how many tasks of the shape the cluster runs at a time, and how many of these are idle.
    """

    def __init__(
        self,
        *,
        send: Callable[[Sequence[bytes]], SharedTask],
        slots: Callable[[], tuple[int, int]],
        rules: SharingRules,
    ):
        self._send = send
        self._slots = slots
        self._rules = rules
        self._waiting: list[_Item] = []
        self._planned = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.out = 0
        """Tasks that have neither answered nor handed their attempts back."""

    async def run(self, payload: bytes, expected_s: float) -> bytes | None:
        """The attempt's encoded outcome; None: it was handed back.

        Cancelling returns when it is certain that the attempt does not run any more. Raises `WorkerLost` when the
        worker died under this very attempt.
        """
        item = _Item(payload, expected_s, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._plan()
        try:
            return await item.done
        except asyncio.CancelledError:
            if item.batch is not None:
                await item.batch.leave(item)
            raise

    def _plan(self) -> None:
        """Sends what waits, once all that becomes ready at this moment has come."""
        if not self._planned and self._waiting:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._planned = False
        # Who was cancelled while waiting takes no place.
        waiting = [item for item in self._waiting if not item.done.done()]
        slots, idle = self._slots()
        expected = [item.expected_s for item in waiting]
        at = 0
        for size in group(expected, out=self.out, slots=slots, idle=idle, rules=self._rules):
            self._start(waiting[at : at + size])
            at += size
        self._waiting = waiting[at:]
        if not self.out:
            self._plan()  # nothing could be sent, so no answer will come to send the rest after

    def _start(self, items: list[_Item]) -> None:
        try:
            sent = self._send([item.payload for item in items])
        except Exception:
            # Alone, each finds out by itself what is wrong.
            for item in items:
                item.settle(None)
            return
        self.out += 1
        batch = _Batch(items, sent, self._rules, on_free=self._freed)
        for item in items:
            item.batch = batch
        task = asyncio.create_task(batch.follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _freed(self) -> None:
        self.out -= 1
        self._plan()


class _Batch:
    """One group under way."""

    def __init__(self, items: list[_Item], task: SharedTask, rules: SharingRules, *, on_free: Callable[[], None]):
        self._items = items
        self._task = task
        self._rules = rules
        self._on_free: Callable[[], None] | None = on_free
        self._running: tuple[_Item, float] | None = None
        """The one attempt that is left after the others were handed back, and the loop's time when it began."""
        self._stopping: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Until the task has ended and every attempt is settled."""
        if len(self._items) == 1:
            # It keeps nobody waiting: however long it takes and whatever ends it is its own.
            self._running = (self._items[0], asyncio.get_running_loop().time())
        answer = asyncio.ensure_future(self._task.results())
        try:
            await asyncio.wait({answer}, timeout=self._rules.hold_s + _MARGIN_S)
            if not answer.done():
                alive = await self._wait_for_a_word(answer)
                self._free()
                if not alive:
                    return
                await asyncio.wait({answer})
            self._free()
            await self._answered(answer)
        finally:
            answer.cancel()
            self._free()
            for item in self._items:
                item.settle(None)

    async def leave(self, item: _Item) -> None:
        """Nobody waits for the attempt any more; returns when it is certain that it does not run.

        The task goes on for its other attempts, which it is not for long, unless this one is what it is busy with.
        """
        if item.settled:
            return
        item.gone = asyncio.get_running_loop().create_future()
        self._stop_if_left()
        await item.gone

    async def _wait_for_a_word(self, answer: asyncio.Future[Sequence[bytes]]) -> bool:
        """The task is late. Hands back what its worker says it will not start; ends one that says nothing at all.

        A silent one waits for a place, or holds the interpreter so that its worker cannot speak. False: it was ended.
        One that carries a single attempt has nothing to say, and all the time that the attempt's own limits give it.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._rules.silence_s
        while not answer.done() and len(self._items) > 1:
            report = await self._task.report()
            if report is not None:
                self._hand_back(report)
                break
            if loop.time() > give_up:
                await self._task.stop(force=True)
                return False
            await asyncio.wait({answer}, timeout=_ASK_AGAIN_S)
        return True

    def _hand_back(self, report: LateReport) -> None:
        at = len(report.outcomes)
        for item, outcome in zip(self._items, report.outcomes, strict=False):
            item.settle(outcome)
        if at < len(self._items):
            self._running = (self._items[at], asyncio.get_running_loop().time() - report.running_s)
        for item in self._items[at + 1 :]:
            item.settle(None)
        self._stop_if_left()

    async def _answered(self, answer: asyncio.Future[Sequence[bytes]]) -> None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if error is None:
            for item, outcome in zip(self._items, answer.result(), strict=False):
                item.settle(outcome)
            return
        if self._running is None and not all(item.settled for item in self._items):
            # It may have spoken just before it died.
            report = await self._task.report()
            if report is not None:
                self._hand_back(report)
        if self._running is not None and self._stopping is None:
            item, since = self._running
            item.settle(WorkerLost(error, asyncio.get_running_loop().time() - since))

    def _stop_if_left(self) -> None:
        """Stops the task when nobody waits for anything that it still does."""
        if self._stopping is None and all(item.settled or item.gone is not None for item in self._items):
            self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        try:
            await self._task.stop(force=False)
        finally:
            for item in self._items:
                item.settle(None)

    def _free(self) -> None:
        if self._on_free is not None:
            self._on_free()
            self._on_free = None
