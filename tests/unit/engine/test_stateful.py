"""The engine under random workflows and random histories: crashes at any point, cancels, resumes, late results."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pipelines.engine import EngineLimits, RunEnded, StartAttempt, events
from pipelines.engine.commands import Decision
from pipelines.engine.testing import Harness, error
from pipelines.executor.port import Attempt, Outcome


@st.composite
def workflows(draw: st.DrawFn, *, nested: str | None = None) -> list[dict[str, Any]]:
    """A random graph of steps of all kinds."""
    count = draw(st.integers(1, 6))
    steps: list[dict[str, Any]] = []
    for i in range(count):
        step: dict[str, Any] = {"id": f"s{i}", "type": "python_script"}
        deps = draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else []
        step["depends_on"] = [f"s{d}" for d in deps]
        if deps:
            step["run_if"] = draw(st.sampled_from(["all_success", "any_success", "all_done", "any_failed"]))
            if draw(st.booleans()):
                step["when"] = draw(
                    st.sampled_from(["true", "false", "input.flag", f"steps.s{deps[0]}.state != 'FAILED'"])
                )
        kind = draw(st.sampled_from(["plain", "plain", "plain", "foreach", "loop", "approval", "model", "nested"]))
        if kind == "foreach":
            step["foreach"] = {
                "items": list(range(draw(st.integers(0, 4)))),
                "max_parallel": draw(st.integers(1, 3)),
                "on_failure": draw(st.sampled_from(["fail", "continue", "threshold"])),
            }
        elif kind == "loop":
            step["loop"] = {
                "max_iterations": draw(st.integers(1, 3)),
                "until": draw(st.sampled_from(["loop.output == 1", "false"])),
                "on_exhausted": draw(st.sampled_from(["fail", "continue"])),
                "delay": draw(st.sampled_from([0, 7])),
            }
        elif kind == "approval":
            step["type"] = "approval"
            step["timeout"] = 120
            step["on_timeout"] = draw(st.sampled_from(["fail", "approve"]))
        elif kind == "model":
            step |= {"type": "model_inference", "model": "m"}
        elif kind == "nested" and nested is not None:
            step |= {"type": "workflow", "workflow": nested}
        if step["type"] in ("python_script", "model_inference"):
            step["queue"] = draw(st.sampled_from(["default", "narrow"]))
            if draw(st.integers(0, 3)) == 0:
                step["concurrency"] = {"key": draw(st.sampled_from(["k1", "k2"])), "limit": draw(st.integers(1, 2))}
            if draw(st.booleans()):
                step["timeout"] = {"attempt": 30, "step": 200}
        if step["type"] != "approval":
            step["retry"] = {"max_attempts": draw(st.integers(1, 3)), "initial_interval": 1}
        if draw(st.integers(0, 4)) == 0:
            step["delay"] = 11
        later = [f"s{j}" for j in range(i + 1, count)]
        step["on_error"] = draw(
            st.sampled_from(["fail", "fail", "continue", {"default": 0}, *([{"goto": later[-1]}] if later else [])])
        )
        steps.append(step)
    return steps


OUTCOMES = st.sampled_from(["success", "success", "success", "failed", "lost", "timeout", "parked", "busy", "bad"])


def outcome_of(kind: str, value: int) -> Outcome:
    """An outcome of this kind."""
    if kind == "success":
        return Outcome(status="success", output=value)
    if kind == "timeout":
        return Outcome(status="timeout")
    code = {
        "failed": "step_error", "lost": "worker_died", "parked": "breaker_open", "busy": "overloaded",
        "bad": "invalid_input",
    }[kind]  # fmt: skip
    return Outcome(status="failed", error=error(code))


class Watch(Harness):
    """A harness that also checks, over the whole history, what no single state shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.final: dict[str, str] = {}
        self.highest = 0
        self.committed: set[tuple[str, str, int | None, int]] = set()
        self.skipped: set[tuple[str, str]] = set()

    def take(self, decision: Decision) -> Decision:
        for event in decision.events:
            self._watch_steps(event)
            if isinstance(event, events.RunResumed):
                self.final.pop(event.run_id, None)
            elif isinstance(event, events.AttemptStarted):
                assert event.fence > self.highest, "fences must grow"
                self.highest = event.fence
            run_id = getattr(event, "run_id", None)
            if not isinstance(event, (events.RunEvicted, events.RunResumed)):
                assert run_id not in self.final, f"{event} came after the end of its run"
            if isinstance(event, (events.RunSucceeded, events.RunFailed, events.RunCancelled)):
                self.final[event.run_id] = type(event).__name__
        for command in decision.commands:
            if isinstance(command, StartAttempt):
                assert command.attempt.run_id not in self.final, "an attempt started after its run ended"
            elif isinstance(command, RunEnded):
                assert command.run_id in self.final
        return super().take(decision)

    def _watch_steps(self, event: events.Event) -> None:
        """Each result is committed at most once; a step that was skipped never starts."""
        if isinstance(event, events.RunResumed):
            self.skipped = {s for s in self.skipped if s[0] != event.run_id}
        elif isinstance(event, events.StepSkipped):
            assert (event.run_id, event.step_id) not in self.skipped
            self.skipped.add((event.run_id, event.step_id))
        elif isinstance(event, (events.AttemptStarted, events.StepStarted)):
            assert (event.run_id, event.step_id) not in self.skipped
        elif isinstance(event, (events.StepSucceeded, events.ItemSucceeded, events.IterationSucceeded)):
            item = event.item if isinstance(event, events.ItemSucceeded) else None
            iteration = event.iteration if isinstance(event, events.IterationSucceeded) else -1
            key = (event.run_id, event.step_id, item, iteration)
            assert key not in self.committed, f"{key} was committed twice"
            self.committed.add(key)


class EngineMachine(RuleBasedStateMachine):
    """Everything that may happen to an engine, in any order."""

    @initialize(data=st.data(), shared=st.booleans())
    def begin(self, data: st.DataObject, shared: bool) -> None:
        limits = EngineLimits(max_parallel_steps=4, queues={"narrow": 1}, attempt_grace_s=10, shared=shared)
        self.h = Watch(limits=limits)
        self.rivals: list[int] = []
        self.rival_tickets = 0
        self.h.take(self.h.engine.register({"name": "inner", "steps": data.draw(workflows())}, now=self.h.now))
        steps = data.draw(workflows(nested="inner"))
        self.h.take(self.h.engine.register({"name": "w", "steps": steps}, now=self.h.now))
        self.old: list[Attempt] = []
        self.crashes = self.before_crash = 0

    @rule(flag=st.booleans())
    def submit(self, flag: bool) -> None:
        if len(self.h.engine) < 6:
            self.h.submit({"flag": flag})

    @precondition(lambda self: self.h.running)
    @rule(data=st.data(), kind=OUTCOMES, value=st.integers(0, 1))
    def end_an_attempt(self, data: st.DataObject, kind: str, value: int) -> None:
        fence = data.draw(st.sampled_from(sorted(self.h.running)))
        attempt = self.h.running[fence]
        self.old.append(attempt)
        self.h.end(attempt, outcome_of(kind, value))

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def report_an_old_attempt_again(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.old))
        if attempt.fence in self.h.running:
            return
        if self.h.end(attempt, Outcome(status="success", output="late")).refused is None:
            # Only an attempt of before a crash that has not been started again yet: it is still the newest of its unit.
            unit = (attempt.run_id, attempt.step_id, attempt.item)
            fences = [e.fence for e in self.h.events(events.AttemptStarted) if (e.run_id, e.step_id, e.item) == unit]
            assert self.crashes
            assert max(f for f in fences if f <= self.before_crash) == attempt.fence

    @precondition(lambda self: self.h.limits.shared)
    @rule(need=st.sampled_from([("lock:k1", 1), ("lock:k2", 2), ("queue:narrow", 1)]), rank=st.sampled_from([0.0, 1e9]))
    def another_shard_asks(self, need: tuple[str, int], rank: float) -> None:
        self.rival_tickets += 1
        self.rivals.append(self.rival_tickets)
        self.h.rival_asks(self.rival_tickets, need, rank=rank)

    @precondition(lambda self: self.rivals)
    @rule(data=st.data())
    def another_shard_ends(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.rivals))
        self.rivals.remove(ticket)
        self.h.rival_ends(ticket)

    @rule(seconds=st.sampled_from([0.5, 3, 12, 45, 150]))
    def let_time_pass(self, seconds: float) -> None:
        self.h.advance(seconds)

    @rule(data=st.data(), approved=st.booleans())
    def answer_an_approval(self, data: st.DataObject, approved: bool) -> None:
        waiting = [
            (run_id, step["id"])
            for run_id in self.h.engine.run_ids()
            for step in self.h.engine.view(run_id)["steps"]
            if step.get("waiting") == {"for": "approval"}
        ]
        if waiting:
            run_id, step_id = data.draw(st.sampled_from(waiting))
            self.h.take(self.h.engine.signal(run_id, step_id, {"approved": approved}, now=self.h.now))

    @precondition(lambda self: len(self.h.engine))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.h.engine.run_ids()))
        self.h.cancel(run_id)
        assert all(a.run_id != run_id for f, a in self.h.running.items() if f not in self.h.cancelled)

    @precondition(lambda self: len(self.h.engine))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.h.engine.run_ids()))
        if self.h.state(run_id) in ("FAILED", "CANCELLED"):
            kept = set(self.h.engine.plan_resume(run_id).kept)
            committed = {s for s, state in self.h.steps(run_id).items() if state == "SUCCESS"}
            assert committed <= kept
            self.h.take(self.h.engine.resume(run_id, now=self.h.now))

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        done = [r for r in self.h.engine.run_ids() if self.h.state(r) == "SUCCESS"]
        if done:
            self.h.take(self.h.engine.evict(data.draw(st.sampled_from(done))))

    @rule(state=st.sampled_from(["open", "half_open", "closed"]))
    def breaker(self, state: str) -> None:
        self.h.take(self.h.engine.breaker("model:m", state, now=self.h.now))

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.old += self.h.running.values()
        self.crashes += 1
        self.before_crash = self.h.highest
        self.h.crash(data.draw(st.none() | st.integers(0, len(self.h.log))))

    def teardown(self) -> None:
        """Whatever happened: with healthy workers and time every run ends."""
        if not hasattr(self, "h"):
            return
        self.h.take(self.h.engine.breaker("model:m", "closed", now=self.h.now))
        for ticket in self.rivals:
            self.h.rival_ends(ticket)
        for _ in range(300):
            self.h.reap()
            while self.h.running:
                self.h.end(next(iter(self.h.running.values())), Outcome(status="success", output=1))
            if all(
                self.h.engine.run_state(r).value in ("SUCCESS", "FAILED", "CANCELLED") for r in self.h.engine.run_ids()
            ):
                break
            self.h.advance(50)
        stuck = [self.h.engine.view(r) for r in self.h.engine.run_ids() if self.h.state(r) in ("PENDING", "RUNNING")]
        assert not stuck, stuck
        assert self.h.engine.gauges()["running"] == 0
        assert self.h.arbiter.view() == [], "a slot is held though nothing runs"
        self.h.crash()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
