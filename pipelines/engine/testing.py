"""A shell around the engine for tests: a log, a clock, attempts that end when a test says so, and crashes.

After every input it checks the invariants, replays the new events into a second engine and compares the two: what was
decided and what the log says must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.slots import Arbiter, Ask, Grant, Holder
from pipelines.engine import events as ev
from pipelines.engine.codec import decode, encode
from pipelines.engine.commands import (
    AskSlot,
    CancelAttempt,
    Decision,
    FetchValue,
    RunEnded,
    SlotDone,
    StartAttempt,
)
from pipelines.engine.core import EngineLimits
from pipelines.engine.engine import Engine
from pipelines.executor.port import Attempt, Outcome

__all__ = ["Harness", "error"]


def error(code: str = "step_error", message: str = "boom", **details: Any) -> dict[str, Any]:
    """An error as an executor reports it."""
    out: dict[str, Any] = {"code": code, "message": message, "status": 500, "retryable": True}
    if details:
        out["details"] = details
    return out


@dataclass
class Harness:
    """An engine with everything around it in plain sight.

    `running`: attempts that were started and not ended, by fence. `cancelled`: fences that are to stop (they stay in
    `running` until a test ends them). `fetches`: spilled values asked for. `ended`: final states by run id.
    With `limits.shared`, an arbiter of two shards grants slots; `rival` is the other shard, which holds what a test has
    it ask for.
    """

    limits: EngineLimits = field(default_factory=EngineLimits)
    now: float = 1000.0
    jitter: float = 0.5
    compare: bool = True
    log: list[bytes] = field(default_factory=list)
    running: dict[int, Attempt] = field(default_factory=dict)
    started: list[Attempt] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    fetches: list[Mapping[str, Any]] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    merge_keys: dict[int, str | None] = field(default_factory=dict)
    _children: int = 0
    _runs: int = 0

    def __post_init__(self) -> None:
        self.arbiter = Arbiter(epoch=1, shards=2)
        self.holder, self.rival = Holder(shard=0, life=1), Holder(shard=1, life=1)
        self._talk(self.rival)
        self.engine = self._new()
        self.mirror = self._new()

    def _new(self) -> Engine:
        return Engine(ids=self._child_id, random=lambda: self.jitter, limits=self.limits)

    def _child_id(self) -> str:
        self._children += 1
        return f"run-0-child{self._children}"

    # --- inputs -----------------------------------------------------------------------------------------------------

    def take(self, decision: Decision) -> Decision:
        """What a shell does with a decision."""
        self.log += [encode(event) for event in decision.events]
        for command in decision.commands:
            if isinstance(command, StartAttempt):
                attempt = command.attempt
                self.running[attempt.fence] = attempt
                self.started.append(attempt)
                self.merge_keys[attempt.fence] = command.merge_key
            elif isinstance(command, CancelAttempt):
                self.cancelled.add(command.fence)
            elif isinstance(command, FetchValue):
                self.fetches.append(command.reference)
            elif isinstance(command, AskSlot):
                self.holder.ask(command.ask)
            elif isinstance(command, SlotDone):
                self.holder.done(command.ticket)
            elif isinstance(command, RunEnded):
                self.ended[command.run_id] = command.state
        self.engine.check_invariants()
        if self.compare:
            self.mirror.replay(decode(encode(event)) for event in decision.events)
            assert self.mirror.dump() == self.engine.dump(), "the log does not say what was decided"
        if self.limits.shared:
            grants = self._talk(self.holder)
            if grants:
                self.take(self.engine.granted(grants, now=self.now))
        return decision

    def _talk(self, holder: Holder) -> list[Grant]:
        """Exchange messages with the arbiter until it knows everything."""
        grants: list[Grant] = []
        for _ in range(3):
            reply = self.arbiter.handle(holder.report())
            if reply is not None:
                grants += holder.take(reply)
        self.arbiter.check()
        return grants

    def rival_asks(self, ticket: int, *needs: tuple[str, int], rank: float = 0.0) -> bool:
        """The other shard wants these slots; whether it has them now."""
        self.rival.ask(Ask(ticket=ticket, rank=rank, needs=needs, about="rival"))
        return bool(self._talk(self.rival))

    def rival_ends(self, ticket: int) -> None:
        """The other shard needs them no more."""
        self.rival.done(ticket)
        self._talk(self.rival)
        self.take(Decision())

    def register(self, *steps: Mapping[str, Any], name: str = "w", **keys: Any) -> str:
        """A workflow of these steps; returns its digest. A step without `type` is a python_script."""
        spec = {"name": name, "steps": [{"type": "python_script", **step} for step in steps], **keys}
        decision = self.take(self.engine.register(spec, now=self.now))
        assert decision.digest is not None
        return decision.digest

    def submit(
        self, input: Any = None, *, workflow: str = "w", run_id: str | None = None, seed: int | None = None
    ) -> str:
        """A new run; returns its id."""
        self._runs += 1
        run_id = run_id or f"run-0-{self._runs}"
        self.take(self.engine.submit(workflow, input, run_id=run_id, now=self.now, seed=seed))
        return run_id

    def find(self, step_id: str, item: int | None = None, run_id: str | None = None) -> Attempt:
        """The attempt in flight of a step (or item)."""
        for fence, attempt in self.running.items():
            same = attempt.step_id == step_id and attempt.item == item
            if same and fence not in self.cancelled and run_id in (None, attempt.run_id):
                return attempt
        raise AssertionError(f"no attempt of {step_id} (item {item}) is in flight: {self.in_flight()}")

    def end(self, attempt: Attempt, outcome: Outcome) -> Decision:
        """An attempt ended like this."""
        self.running.pop(attempt.fence, None)
        return self.take(
            self.engine.attempt_finished(
                attempt.run_id, attempt.step_id, attempt.item, attempt.fence, outcome, now=self.now
            )
        )

    def succeed(
        self, step_id: str, output: Any = None, *, item: int | None = None, run_id: str | None = None
    ) -> Decision:
        """The step's (or item's) attempt returned `output`."""
        return self.end(self.find(step_id, item, run_id), Outcome(status="success", output=output))

    def fail(
        self,
        step_id: str,
        failure: Mapping[str, Any] | None = None,
        *,
        item: int | None = None,
        run_id: str | None = None,
    ) -> Decision:
        """The step's (or item's) attempt failed."""
        return self.end(self.find(step_id, item, run_id), Outcome(status="failed", error=failure or error()))

    def cancel(self, run_id: str) -> Decision:
        """Somebody asked the run to stop."""
        return self.take(self.engine.cancel(run_id, now=self.now))

    def advance(self, seconds: float) -> None:
        """Let time pass, firing timers when they are due."""
        until = self.now + seconds
        while (due := self.engine.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.take(self.engine.tick(self.now))
        self.now = until

    def reap(self) -> None:
        """Cancelled attempts report that they stopped."""
        for fence in sorted(self.cancelled & self.running.keys()):
            self.end(self.running[fence], Outcome(status="cancelled"))

    def crash(self, snapshot_at: int | None = None) -> None:
        """The process dies; another one starts from the log (after `snapshot_at` records: from a snapshot there)."""
        self.running.clear()
        self.cancelled.clear()
        self.fetches.clear()
        engine = self._new()
        events = [decode(record) for record in self.log]
        if snapshot_at is not None:
            first = self._new()
            first.replay(events[:snapshot_at])
            engine.load(first.dump())
            events = events[snapshot_at:]
        engine.replay(events)
        self.holder = Holder(shard=0, life=self.holder.life + 1, fence=engine.lock_fence)
        if self.compare:
            assert engine.dump() == self.engine.dump(), "recovery lost or invented something"
        self.engine = engine
        self.take(engine.recover(self.now))

    # --- looking ----------------------------------------------------------------------------------------------------

    def in_flight(self) -> list[str]:
        """`step` or `step[item]` of every attempt that runs and is not told to stop, in order of starting."""
        return [
            a.step_id if a.item is None else f"{a.step_id}[{a.item}]"
            for fence, a in self.running.items()
            if fence not in self.cancelled
        ]

    def state(self, run_id: str) -> str:
        """The run's state."""
        return self.engine.run_state(run_id).value

    def steps(self, run_id: str) -> dict[str, str]:
        """States of the run's steps."""
        return {step["id"]: step["state"] for step in self.engine.view(run_id)["steps"]}

    def step(self, run_id: str, step_id: str) -> dict[str, Any]:
        """One step as users see it."""
        found: dict[str, Any] = next(s for s in self.engine.view(run_id)["steps"] if s["id"] == step_id)
        return found

    def output(self, run_id: str) -> Any:
        """The run's output."""
        return self.engine.view(run_id)["output"]

    def events(self, kind: type[Any]) -> list[Any]:
        """All facts of one kind in the log."""
        return [event for event in map(decode, self.log) if isinstance(event, kind)]

    def commits(self) -> list[tuple[str, str, int | None, int]]:
        """(run, step, item, iteration) of every committed result."""
        found: list[tuple[str, str, int | None, int]] = []
        for event in map(decode, self.log):
            if isinstance(event, ev.StepSucceeded):
                found.append((event.run_id, event.step_id, None, -1))
            elif isinstance(event, ev.ItemSucceeded):
                found.append((event.run_id, event.step_id, event.item, -1))
            elif isinstance(event, ev.IterationSucceeded):
                found.append((event.run_id, event.step_id, None, event.iteration))
        return found
