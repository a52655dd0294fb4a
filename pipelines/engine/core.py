"""What deciding needs beside the state: scheduler, timers, breakers, fetched values, and the decision in the making.

All of it but `state` is rebuilt by `Engine.recover`; none of it is logged.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.engine.commands import Command, FetchValue
from pipelines.engine.events import Event
from pipelines.engine.runs import Run
from pipelines.engine.schedule import Ready, Scheduler
from pipelines.engine.state import State

__all__ = ["Core", "EngineLimits", "Feed", "Timer"]

VALUES_BYTES = 256 << 20
"""Contents of spilled values that are remembered; also the most that one template may look into at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds that are not the workflow's own. `queues` maps a queue's name to how many attempts it may run at once.
    `max_run_bytes`: JSON of results and errors that one run may hold (sizes.py).

    `ageing_s`: a waiting attempt rises by one priority level in this time. `attempt_grace_s`: how much later than its
    timeout an attempt may report before the engine gives it up (the executor enforces the timeout itself).
    """

    max_parallel_steps: int = 256
    max_foreach_items: int = 10_000
    max_open_runs: int = 100_000
    max_nesting: int = 8
    queues: Mapping[str, int] = field(default_factory=dict)
    max_run_bytes: int = 64 << 20
    ageing_s: float = 60.0
    attempt_grace_s: float = 60.0
    shared: bool = False
    """Whether locks and named queues hold over several shards, so that others grant them."""


@dataclass(slots=True)
class Feed:
    """The items of a `foreach` that have not been queued yet."""

    values: list[Any]
    pending: deque[int]


PROBE_AGAIN_S = 10.0
"""How long a half-open breaker waits for word of its probes before it lets others through."""


@dataclass(slots=True)
class Breaker:
    """What was last heard of a breaker. `budget`: attempts that a half-open one still lets through; `fences`: those
    that try it now; `again_at`: when others may try though nothing was heard of these."""

    state: str
    budget: int = 0
    probes: int = 0
    fences: set[int] = field(default_factory=set)
    again_at: float = math.inf


_TIMERS = 4096
"""So many are kept before it is worth looking for some that no longer apply."""
Reader = tuple[str, int, int | None]
"""Who looks into a spilled value: run id, step index (or `RUN_OUTPUT`), item."""
Timer = tuple[float, int, str, str, int, int | None, float]
"""(when, sequence, kind, run id, step index, item, mark): `mark` lets a timer that no longer applies be recognised."""


class Core:
    """Shared by the deciding modules (steps, attempts, ending); only `Engine` makes one."""

    def __init__(self, *, ids: Callable[[], str], random: Callable[[], float], limits: EngineLimits):
        self.ids = ids
        self.random = random
        self.limits = limits
        self.state = State()
        self.now = 0.0
        self.events: list[Event] = []
        self.commands: list[Command] = []
        self.breakers: dict[str, Breaker] = {}
        self.children_ended: deque[Run] = deque()
        self.reset()

    def reset(self) -> None:
        """Forget everything that recovery rebuilds."""
        limits = self.limits
        self.scheduler = Scheduler(
            max_running=limits.max_parallel_steps,
            queues=limits.queues,
            ageing_s=limits.ageing_s,
            send=self.command if limits.shared else None,
        )
        self.timers: list[Timer] = []
        self._timer_sequence = 0
        self._timers_most = _TIMERS
        self.feeds: dict[tuple[str, int], Feed] = {}
        self.parked: dict[str, dict[int, Ready]] = {}
        self.values: OrderedDict[str, Any] = OrderedDict()
        self._value_sizes: dict[str, int] = {}
        self._values_bytes = 0
        self.needed: dict[str, dict[Reader, None]] = {}
        """By the hash of a spilled value that is being fetched: who goes on with it."""
        self.reads: dict[Reader, dict[str, int]] = {}
        """What was fetched for those who have not gone on yet, since they looked into more: bytes by hash."""
        self._awaits: dict[Reader, str] = {}
        self.resumable: dict[str, dict[tuple[str, str, int | None], str]] = {}
        """By resumed run: its nested runs that failed and have not gone on yet. Found again when it is not there."""

    def emit(self, event: Event) -> None:
        """Apply a fact and put it into the decision."""
        self.events.append(event)
        self.state.apply(event)

    def command(self, command: Command) -> None:
        """Put a command into the decision."""
        self.commands.append(command)

    def timer(
        self, when: float, kind: str, run: Run, index: int = -1, item: int | None = None, mark: float = 0.0
    ) -> None:
        """Have `Engine.tick` look at something at `when`."""
        self._timer_sequence += 1
        heapq.heappush(self.timers, (when, self._timer_sequence, kind, run.id, index, item, mark))
        if len(self.timers) > self._timers_most:
            # Most attempts end long before their timeouts: those of runs that have ended would be kept for hours.
            runs = self.state.runs
            self.timers = [t for t in self.timers if (of := runs.get(t[3])) is not None and not of.ended]
            heapq.heapify(self.timers)
            self._timers_most = max(_TIMERS, 2 * len(self.timers))

    def need(self, run: Run, index: int, reference: Mapping[str, Any], item: int | None = None) -> None:
        """The step (or its item, or `RUN_OUTPUT`) goes on when this spilled value has been fetched."""
        sha, reader = str(reference["$blob"]), (run.id, index, item)
        self._awaits[reader] = sha
        waiting = self.needed.get(sha)
        if waiting is None:
            self.needed[sha] = {reader: None}
            self.command(FetchValue(reference=dict(reference)))
        else:
            waiting[reader] = None

    def forget_needs(self, run: Run) -> None:
        """The run has other steps now: what its old ones waited for is fetched for nobody."""
        for waiting in self.needed.values():
            for reader in [reader for reader in waiting if reader[0] == run.id]:
                del waiting[reader]
                self._awaits.pop(reader, None)
                self.reads.pop(reader, None)

    def fetched(self, sha: str, size: int, reader: Reader) -> int:
        """A value was fetched for somebody who looks into it; returns the bytes of all that it looks into at once."""
        self._awaits.pop(reader, None)
        reads = self.reads.setdefault(reader, {})
        reads[sha] = size
        return sum(reads.values())

    def went_on(self, reader: Reader) -> None:
        """Whoever a value was fetched for had its turn; one that wants another one now keeps its account."""
        if reader not in self._awaits:
            self.reads.pop(reader, None)

    def keep_value(self, sha: str, value: Any, size: int) -> None:
        """Remember a fetched value; the least recently fetched ones go when there are too many bytes of them."""
        self._values_bytes += size - self._value_sizes.get(sha, 0)
        self.values[sha] = value
        self.values.move_to_end(sha)
        self._value_sizes[sha] = size
        while self._values_bytes > VALUES_BYTES and len(self.values) > 1:
            old, _ = self.values.popitem(last=False)
            self._values_bytes -= self._value_sizes.pop(old)

    def breaker_open(self, key: str, fence: int) -> bool:
        """Whether the attempt `fence`, which depends on `key`, must be parked; uses up a half-open breaker's budget."""
        breaker = self.breakers.get(key)
        if breaker is None:
            return False
        if breaker.state == "half_open" and breaker.budget > 0:
            breaker.budget -= 1
            breaker.fences.add(fence)
            breaker.again_at = self.now + PROBE_AGAIN_S
            return False
        return True

    def probe_succeeded(self, fence: int) -> None:
        """A half-open breaker may want more successes than it lets through at once: the next one follows."""
        for key, breaker in self.breakers.items():
            if fence in breaker.fences:
                breaker.fences.discard(fence)
                breaker.budget += 1
                self.unpark(key, 1)

    def probe_again(self) -> None:
        """Probes can end without the breaker hearing of it (cancelled, lost, the caller's fault), or never begin, when
        their run ends while they wait for a place: let others try."""
        for key, breaker in self.breakers.items():
            if breaker.again_at <= self.now:
                breaker.budget = breaker.probes
                breaker.fences.clear()
                self.unpark(key, breaker.probes)
                breaker.again_at = self.now + PROBE_AGAIN_S if key in self.parked else math.inf

    def unpark(self, key: str, most: int | None = None) -> None:
        """Queue what waits for the breaker of `key`, the longest parked first, `most` of it."""
        parked = self.parked.get(key, {})
        freed = 0
        while parked and (most is None or freed < most):
            ready = parked.pop(next(iter(parked)))
            if not ready.stale:
                self.scheduler.push(ready)
                freed += 1
        if not parked:
            self.parked.pop(key, None)

    def park(self, ready: Ready, key: str) -> None:
        """Set a unit aside until the breaker of `key` lets it through."""
        ready.unit.waiting = "breaker"
        self.parked.setdefault(key, {})[id(ready)] = ready
