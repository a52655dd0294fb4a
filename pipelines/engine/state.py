"""How each fact changes memory: `State.apply(event)`, the only place where runs change. It decides nothing.

What replay does is exactly what happened before the crash, because both go through here. The facts of steps are in
`step_facts.py`, those of definitions and runs are here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.engine import events as ev
from pipelines.engine.plan import compile_plan
from pipelines.engine.runs import Run, Step, held_by
from pipelines.engine.states import (
    RUN_TABLE,
    STEP_TABLE,
    InvalidTransition,
    ItemState,
    StepState,
    move,
)
from pipelines.engine.step_facts import ITEM_BYTE, StepFacts, forget_attempts

__all__ = ["State"]

_STORY = 400


class State(StepFacts):
    """All definitions and all runs in memory, and the highest fence ever given."""

    def __init__(self) -> None:
        super().__init__()
        self.before_change: Callable[[str], None] | None = None
        """Called with the id of every run that a fact is about to change."""
        self._story: deque[ev.Event] = deque(maxlen=_STORY)
        self._apply: dict[type[Any], Callable[[Any], None]] = {
            getattr(ev, name[3:]): getattr(self, name) for name in dir(self) if name.startswith("on_")
        }

    def apply(self, event: ev.Event) -> None:
        """Change memory by one fact. Raises `InvalidTransition`, with its story, when the fact cannot be."""
        self._story.append(event)
        if self.before_change is not None:
            for run_id in (getattr(event, "run_id", None), (getattr(event, "parent", None) or (None,))[0]):
                if run_id is not None:
                    self.before_change(run_id)
        try:
            self._apply[type(event)](event)
        except InvalidTransition as error:
            run_id = getattr(event, "run_id", None)
            error.details["story"] = [repr(e) for e in self._story if getattr(e, "run_id", None) == run_id][-30:]
            raise

    # --- definitions and runs ---------------------------------------------------------------------------------------

    def on_WorkflowRegistered(self, e: ev.WorkflowRegistered) -> None:
        if e.digest not in self.plans:
            self.plans[e.digest] = compile_plan(e.spec, digest=e.digest, bundle=e.bundle, scripts=e.scripts)
        self.latest[e.name] = e.digest

    def on_RunSubmitted(self, e: ev.RunSubmitted) -> None:
        if e.run_id in self.runs:
            raise InvalidTransition(f"run {e.run_id} was submitted twice")
        run = Run(e.run_id, self.plan(e.digest))
        run.input = e.input
        run.created_at = e.at
        run.priority = e.priority
        run.seed = e.seed
        run.depth = e.depth
        run.parent = e.parent
        run.meta = e.meta
        self.runs[e.run_id] = run
        if e.parent is not None and e.parent[0] in self.runs:
            self.note_nested(e.parent, run)

    def _run_ended(self, run: Run, fact: str, at: float) -> None:
        run.state = move(RUN_TABLE, run.state, fact, f"run {run.id}")
        run.finished_at = at
        if run.open:
            for planned, step in zip(run.plan.steps, run.steps, strict=True):
                if "RunEnded" in STEP_TABLE[step.state]:
                    step.state = move(STEP_TABLE, step.state, "RunEnded", f"step {planned.id} of run {run.id}")
                    step.finished_at = at
                    forget_attempts(step)
        run.recount()

    def on_RunSucceeded(self, e: ev.RunSucceeded) -> None:
        run = self.run(e.run_id)
        if run.open:
            raise InvalidTransition(f"run {run.id} succeeded with {run.open} steps that had not ended")
        self._run_ended(run, "RunSucceeded", e.at)
        run.output = e.output

    def on_RunFailed(self, e: ev.RunFailed) -> None:
        run = self.run(e.run_id)
        self._run_ended(run, "RunFailed", e.at)
        run.error = e.error

    def on_RunCancelled(self, e: ev.RunCancelled) -> None:
        run = self.run(e.run_id)
        self._run_ended(run, "RunCancelled", e.at)
        run.reason = e.reason

    def on_RunResumed(self, e: ev.RunResumed) -> None:
        run = self.run(e.run_id)
        run.state = move(RUN_TABLE, run.state, "RunResumed", f"run {run.id}")
        old = dict(zip((p.id for p in run.plan.steps), run.steps, strict=True))
        run.plan = self.plan(e.digest)
        run.digest = e.digest
        kept, partial = frozenset(e.kept), frozenset(e.partial)
        steps: list[Step] = []
        for planned in run.plan.steps:
            before = old.get(planned.id)
            if before is not None and planned.id in kept:
                steps.append(before)
                continue
            step = Step()
            if before is not None and before.state is not StepState.SUCCESS:
                # A committed step that is not kept was edited: it is another step with the same id.
                move(STEP_TABLE, before.state, "RunResumed", f"step {planned.id} of run {run.id}")
            if before is not None and planned.id in partial:
                _keep_progress(step, before)
            steps.append(step)
        run.steps = steps
        run.error = run.reason = run.output = None
        run.finished_at = 0.0
        run.ending = False
        run.resumes += 1
        run.resumed_at = e.at
        run.named = e.named
        if run.parent is not None and run.parent[0] in self.runs and not self.runs[run.parent[0]].ended:
            self.note_nested(run.parent, run)  # it may go on under another definition than the one it began with
        run.recount()
        run.held = sum(map(held_by, run.steps))

    def on_RunEvicted(self, e: ev.RunEvicted) -> None:
        run = self.run(e.run_id)
        if not run.ended:
            raise InvalidTransition(f"run {run.id} is {run.state.value} and cannot leave memory")
        del self.runs[e.run_id]

    def on_RunRestored(self, e: ev.RunRestored) -> None:
        if e.run_id in self.runs:
            raise InvalidTransition(f"run {e.run_id} is in memory already")
        self.runs[e.run_id] = Run.load(e.record, self.plan(e.record["digest"]))

    # --- the whole --------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.dump_head(), "runs": [run.dump() for run in self.runs.values()]}

    def dump_head(self) -> dict[str, Any]:
        """Everything but the runs."""
        return {
            "fence": self.fence,
            "lock_fence": self.lock_fence,
            "plans": [
                {"name": p.name, "digest": p.digest, "spec": p.raw, "bundle": p.bundle, "scripts": p.scripts}
                for p in self.plans.values()
            ],
            "latest": dict(self.latest),
        }

    def load(self, raw: Mapping[str, Any]) -> None:
        """Replace everything by what `dump` wrote."""
        self.plans = {
            p["digest"]: compile_plan(p["spec"], digest=p["digest"], bundle=p["bundle"], scripts=p["scripts"])
            for p in raw["plans"]
        }
        self.latest = dict(raw["latest"])
        self.fence = int(raw["fence"])
        self.lock_fence = int(raw.get("lock_fence", 0))
        self.runs = {r["id"]: Run.load(r, self.plan(r["digest"])) for r in raw["runs"]}
        self.touched.clear()


def _keep_progress(step: Step, before: Step) -> None:
    """Take over the finished items, or the finished rounds, of a step that is tried again."""
    step.iteration = before.iteration
    step.loop_state = before.loop_state
    step.nested = before.nested
    if before.items is not None:
        items = before.items
        for item in items.errors:
            items.states[item] = ITEM_BYTE[ItemState.PENDING]
            items.outputs[item] = None
        items.errors.clear()
        items.done = items.states.count(ITEM_BYTE[ItemState.SUCCESS])
        items.failed = 0
        items.units.clear()
        step.items = items
