"""Deterministic simulation: an event loop with virtual time, and processes in it that crash or freeze at any await.

A history is a function of its seed: time passes only when nothing is left to do, nothing runs in threads, and all
randomness comes from seeded sources. A crashed process simply never runs again (no `finally`, no goodbye), which is
what kill -9 does; a frozen one runs on later with stale beliefs, which is what a zombie does. Messages that it has
sent to the bucket still arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.clock import SystemIds

__all__ = ["LoopClock", "Process", "SeededIds", "SimLoop", "Stuck", "simulate"]

T = TypeVar("T")

_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
_START_S = 1_700_000_000.0


class Stuck(Exception):
    """Nothing is left that could ever happen: some task waits for ever."""


class _InstantSelector(selectors.BaseSelector):
    """Waits by moving the loop's time, never the machine's."""

    def __init__(self) -> None:
        self.loop: SimLoop | None = None
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.loop is not None
        if timeout is None:
            raise Stuck("every task waits for something that no task will do")
        self.loop.now += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class SimLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer. Callbacks of dead processes are dropped, frozen ones wait."""

    def __init__(self) -> None:
        selector = _InstantSelector()
        super().__init__(selector)
        selector.loop = self
        self.now = 0.0
        self.unhandled: list[dict[str, Any]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        """All of them, so that those of dead processes are not collected, and speak, in the middle of a history."""
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.set_task_factory(_remember)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        context = copy_context() if context is None else context  # an empty context is false
        return super().call_soon(*_guarded(callback, args, context), context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run it here and now: how long a thread takes is the machine's affair, and must not order a history."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        context = copy_context() if context is None else context  # an empty context is false
        return super().call_at(when, *_guarded(callback, args, context), context=context)


def _guarded(callback: Any, args: tuple[Any, ...], context: Context) -> tuple[Any, ...]:
    process = context.get(_PROCESS)
    return (callback, *args) if process is None else (process.step, callback, args, context)


@dataclass(eq=False)
class Process:
    """Everything that was started by `spawn`, directly or not. `steps` counts its callbacks: crash points.

    `crash_at` kills it in place of that step; `freeze_at` stops it there for `freeze_s` seconds.
    """

    name: str
    crash_at: int | None = None
    freeze_at: int | None = None
    freeze_s: float = 0.0
    on_end: Callable[[], None] | None = None
    """Called, in the world's context, when it has crashed or frozen."""
    steps: int = 0
    alive: bool = True
    frozen: bool = False
    _held: list[tuple[Any, tuple[Any, ...], Context]] = field(default_factory=list)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as part of this process."""
        context = Context()
        context.run(_PROCESS.set, self)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.append(task)
        return task

    def crash(self) -> None:
        """Stop for ever, at once."""
        if self.alive:
            self.alive = False
            self._held.clear()
            self._tell()

    def freeze(self, seconds: float) -> None:
        """Stop for a while; the world goes on."""
        self.frozen = True
        # In an empty context: the alarm belongs to the world, not to the process.
        asyncio.get_running_loop().call_later(seconds, self._thaw, context=Context())
        self._tell()

    def step(self, callback: Any, args: tuple[Any, ...], context: Context) -> None:
        """Run one callback, unless this is where the process ends."""
        if not self.alive:
            return
        if not self.frozen:
            self.steps += 1
            if self.steps == self.crash_at:
                self.crash()
                return
            if self.steps == self.freeze_at:
                self.freeze(self.freeze_s)
        if self.frozen:
            self._held.append((callback, args, context))
            return
        callback(*args)

    def _tell(self) -> None:
        if self.on_end is not None:
            asyncio.get_running_loop().call_soon(self.on_end, context=Context())

    def _thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for callback, args, context in held:
            asyncio.get_running_loop().call_soon(callback, *args, context=context)


@dataclass
class LoopClock:
    """The loop's virtual time as wall clock and as monotonic clock."""

    loop: asyncio.AbstractEventLoop

    def now(self) -> float:
        return _START_S + self.loop.time()

    def monotonic(self) -> float:
        return self.loop.time()


class SeededIds:
    """ULIDs whose random part comes from a seed."""

    def __init__(self, clock: LoopClock, source: random.Random):
        self._clock = clock
        self._source = source

    def ulid(self) -> str:
        return SystemIds(clock=self._clock, entropy=self._source.randbytes).ulid()


def simulate(work: Callable[[SimLoop], Coroutine[Any, Any, T]]) -> T:
    """Run one history to its end. Everything still going on then is thrown away."""
    loop = SimLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work(loop))
    finally:
        asyncio.set_event_loop(None)
        _discard(loop)
        loop.close()


def _remember(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    loop.tasks.append(task)
    return task


def _discard(loop: SimLoop) -> None:
    """Close the coroutines of unfinished tasks in silence: dead processes must not speak from their `finally`."""
    for task in loop.tasks:
        if task.done():
            continue
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        for _ in range(10):  # a `finally` that awaits needs one more close for each await
            with contextlib.suppress(BaseException):
                coroutine.close()
                break
    loop.tasks.clear()
