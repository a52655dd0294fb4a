"""How each fact changes memory: `State.apply(event)`, the only place where runs change. It decides nothing.

What replay does is exactly what happened before the crash, because both go through here. Steps whose dependencies
changed are noted in `touched` for the deciding side; a replay throws these notes away.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from cluster.errors import NotFound
from pipelines.engine import events as ev
from pipelines.engine.plan import Plan, compile_plan
from pipelines.engine.runs import ITEM_STATES, Items, Run, Step, Unit, count_end, held_by, size_of
from pipelines.engine.states import (
    ITEM_TABLE,
    RUN_TABLE,
    STEP_TABLE,
    InvalidTransition,
    ItemState,
    RunState,
    StepState,
    move,
)

__all__ = ["RUN_OUTPUT", "State"]

RUN_OUTPUT = -1
"""In place of a step's index: the run as a whole (its end and its output)."""
_STORY = 400


class State:
    """All definitions and all runs in memory, and the highest fence ever given."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.latest: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.fence = 0
        self.lock_fence = 0
        """The highest that a lock over all shards was granted under here."""
        self.touched: deque[tuple[Run, int]] = deque()
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

    def run(self, run_id: str) -> Run:
        """The run in memory. Raises `NotFound`."""
        try:
            return self.runs[run_id]
        except KeyError:
            raise NotFound(f"there is no run {run_id!r} in memory") from None

    def plan(self, digest: str) -> Plan:
        """The compiled definition. Raises `NotFound`."""
        try:
            return self.plans[digest]
        except KeyError:
            raise NotFound(f"there is no workflow definition {digest!r}") from None

    def find(self, run_id: str, step_id: str) -> tuple[Run, int, Step]:
        """A run and one of its steps. Raises `NotFound`."""
        run = self.run(run_id)
        index = run.plan.index.get(step_id)
        if index is None:
            known = ", ".join(run.plan.index)
            raise NotFound(f"run {run_id} of workflow {run.workflow!r} has no step {step_id!r} (it has: {known})")
        return run, index, run.steps[index]

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
            self._note_nested(e.parent, run)

    def meaning(self, digest: str, _above: frozenset[str] = frozenset()) -> str:
        """Names what a definition does now, its nested workflows (and theirs) included: they are found by name, so an
        edit of one changes what its parents do without changing their digests."""
        names = sorted({p.spec.workflow for p in self.plans[digest].steps if p.type == "workflow" and p.spec.workflow})
        found = [self.latest[name] for name in names if name in self.latest]
        inner = [self.meaning(d, _above | {digest}) for d in found if d not in _above and d != digest]
        return hashlib.sha256("\n".join([digest, *inner]).encode()).hexdigest() if inner else digest

    def meanings(self) -> dict[str, str]:
        """`meaning` of the newest definition of each name."""
        return {name: self.meaning(digest) for name, digest in self.latest.items()}

    def _note_nested(self, parent: tuple[str, str, int | None], child: Run) -> None:
        run, index, step = self.find(parent[0], parent[1])
        spec = run.plan.steps[index].spec
        before = step.nested if spec.foreach is not None or spec.loop is not None else None
        meaning = self.meaning(child.digest)
        if before is None:
            step.nested = [meaning]
        elif meaning not in before:
            step.nested = [*before, meaning]

    def _run_started(self, run: Run, at: float) -> None:
        if run.state is RunState.PENDING:
            run.state = move(RUN_TABLE, run.state, "StepStarted", f"run {run.id}")
            run.started_at = at

    def _run_ended(self, run: Run, fact: str, at: float) -> None:
        run.state = move(RUN_TABLE, run.state, fact, f"run {run.id}")
        run.finished_at = at
        if run.open:
            for planned, step in zip(run.plan.steps, run.steps, strict=True):
                if "RunEnded" in STEP_TABLE[step.state]:
                    step.state = move(STEP_TABLE, step.state, "RunEnded", f"step {planned.id} of run {run.id}")
                    step.finished_at = at
                    _forget_attempts(step)
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
            self._note_nested(run.parent, run)  # it may go on under another definition than the one it began with
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

    # --- steps ------------------------------------------------------------------------------------------------------

    def _to(self, run: Run, index: int, step: Step, fact: str) -> None:
        following = STEP_TABLE[step.state].get(fact)
        if following is None:
            move(STEP_TABLE, step.state, fact, f"step {run.plan.steps[index].id} of run {run.id}")
        else:
            step.state = following

    def _end(self, run: Run, index: int, step: Step, at: float) -> None:
        step.finished_at = at
        step.waiting = None
        _forget_attempts(step)
        run.open -= 1
        steps, touched = run.steps, self.touched
        for other, is_source in run.plan.steps[index].dependents:
            waiting = steps[other]
            count_end(waiting, step, is_source)
            if waiting.state is StepState.PENDING:
                touched.append((run, other))
        if not run.open:
            touched.append((run, RUN_OUTPUT))

    def on_StepSkipped(self, e: ev.StepSkipped) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "StepSkipped")
        step.reason = e.reason
        self._end(run, index, step, e.at)

    def on_StepDelayed(self, e: ev.StepDelayed) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "StepDelayed")
        step.delay_until = e.until

    def on_StepParked(self, e: ev.StepParked) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "StepParked")
        unit_of(step, e.item).parked = e.key

    def on_StepStarted(self, e: ev.StepStarted) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "StepStarted")
        self._run_started(run, e.at)
        step.started_at = e.at
        step.message = e.message
        if e.count is not None and (step.items is None or len(step.items.states) != e.count):
            step.items = Items(e.count)

    def _item(self, run: Run, index: int, step: Step, item: int, fact: str) -> Items:
        items = step.items
        if items is None or not 0 <= item < len(items.states):
            raise InvalidTransition(f"step {run.plan.steps[index].id} of run {run.id} has no item {item}")
        state = ITEM_STATES[items.states[item]]
        what = f"item {item} of step {run.plan.steps[index].id} of run {run.id}"
        items.states[item] = _ITEM_BYTE[move(ITEM_TABLE, state, fact, what)]
        return items

    def on_AttemptStarted(self, e: ev.AttemptStarted) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        if e.fence <= self.fence:
            raise InvalidTransition(
                f"fence {e.fence} of step {e.step_id} is not above {self.fence}, the last one given"
            )
        self.fence = e.fence
        if e.lock_fence is not None:
            self.lock_fence = max(self.lock_fence, e.lock_fence)
        self._to(run, index, step, "AttemptStarted")
        if e.item is not None:
            self._item(run, index, step, e.item, "AttemptStarted")
        self._run_started(run, e.at)
        if not step.started_at:
            step.started_at = e.at
        unit = unit_of(step, e.item)
        unit.attempt = e.attempt
        unit.fence = e.fence
        unit.started_at = e.at
        unit.retry_at = 0.0
        unit.parked = unit.waiting = None
        unit.lock = e.lock
        unit.child = e.child
        if e.child is not None and e.item is not None and step.items is not None:
            step.items.children[e.item] = e.child
        if e.child is not None and e.child in self.runs:
            self._note_nested((e.run_id, e.step_id, e.item), self.runs[e.child])

    def _check_fence(self, step: Step, item: int | None, fence: int, what: str) -> Unit:
        unit = unit_of(step, item)
        if unit.fence != fence:
            raise InvalidTransition(f"{what} with fence {fence} met the attempt with fence {unit.fence}")
        return unit

    def on_AttemptFailed(self, e: ev.AttemptFailed) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "AttemptFailed")
        if e.item is not None:
            self._item(run, index, step, e.item, "AttemptFailed")
        unit = self._check_fence(step, e.item, e.fence, f"a failure of step {e.step_id}")
        unit.fence = 0
        unit.lock = unit.child = unit.waiting = None
        unit.retry_at = e.retry_at
        if e.spent == "failure":
            unit.failures += 1
        elif e.spent == "lost":
            unit.lost += 1
        elif e.spent == "busy":
            unit.busy += 1
        else:
            unit.parked = e.key
        if e.item is None:
            step.error = e.error
            step.log = e.log or step.log

    def on_IterationSucceeded(self, e: ev.IterationSucceeded) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "IterationSucceeded")
        self._check_fence(step, None, e.fence, f"a result of step {e.step_id}")
        if e.iteration != step.iteration:
            raise InvalidTransition(
                f"iteration {e.iteration} of step {e.step_id} ended, but {step.iteration} was running"
            )
        run.held += size_of(e.output) - (size_of(step.loop_state) if step.iteration else 0)
        step.iteration += 1
        step.loop_state = e.output
        step.chosen, step.log, step.error = e.chosen, e.log, None
        step.duration_s += e.duration_s
        step.unit = Unit()

    def on_ItemSucceeded(self, e: ev.ItemSucceeded) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "ItemSucceeded")
        items = self._item(run, index, step, e.item, "ItemSucceeded")
        self._check_fence(step, e.item, e.fence, f"a result of item {e.item} of step {e.step_id}")
        items.outputs[e.item] = e.output
        run.held += size_of(e.output)
        items.note_end(e.item, e.duration_s)
        items.done += 1
        del items.units[e.item]
        items.children.pop(e.item, None)
        step.chosen = e.chosen
        step.log = e.log or step.log
        step.duration_s += e.duration_s

    def on_ItemFailed(self, e: ev.ItemFailed) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "ItemFailed")
        items = self._item(run, index, step, e.item, "ItemFailed")
        if e.fence:
            self._check_fence(step, e.item, e.fence, f"a failure of item {e.item} of step {e.step_id}")
        items.errors[e.item] = e.error
        run.held += size_of(e.error)
        items.note_end(e.item, e.duration_s)
        items.done += 1
        items.failed += 1
        items.units.pop(e.item, None)
        step.log = e.log or step.log
        step.duration_s += e.duration_s

    def on_StepSucceeded(self, e: ev.StepSucceeded) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        replaced = held_by(step) if e.error is not None else 0
        self._to(run, index, step, "StepSucceeded")
        if e.fence:
            self._check_fence(step, None, e.fence, f"a result of step {e.step_id}")
        self._run_started(run, e.at)
        step.error = e.error
        if e.error is not None:
            step.output = e.output
            step.items = None
            run.held += held_by(step) - replaced
        elif step.items is not None:
            step.output = step.items.outputs
        elif step.iteration:
            step.output, step.loop_state = step.loop_state, None
        else:
            step.output = e.output
            run.held += size_of(e.output)
        step.chosen = e.chosen or step.chosen
        step.log = e.log or step.log
        _add_duration(step, e)
        self._end(run, index, step, e.at)

    def on_StepFailed(self, e: ev.StepFailed) -> None:
        run, index, step = self.find(e.run_id, e.step_id)
        self._to(run, index, step, "StepFailed")
        if e.fence:
            self._check_fence(step, None, e.fence, f"a failure of step {e.step_id}")
        self._run_started(run, e.at)
        step.error = e.error
        step.handled = e.handled
        run.held += size_of(e.error)
        step.log = e.log or step.log
        _add_duration(step, e)
        if e.handled == "fail":
            run.broken += 1
        self._end(run, index, step, e.at)

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


_ITEM_BYTE: Mapping[ItemState, int] = {state: byte for byte, state in enumerate(ITEM_STATES)}


def unit_of(step: Step, item: int | None) -> Unit:
    """The thing that is tried, made when it is first needed."""
    if item is None:
        if step.unit is None:
            step.unit = Unit()
        return step.unit
    assert step.items is not None
    unit = step.items.units.get(item)
    if unit is None:
        unit = step.items.units[item] = Unit()
    return unit


def _add_duration(step: Step, e: ev.StepSucceeded | ev.StepFailed) -> None:
    """A step with items or rounds of its own took as long as it was under way, not the sum of them."""
    if e.fence or not e.duration_s:
        step.duration_s += e.duration_s
    else:
        step.duration_s = e.duration_s


def _forget_attempts(step: Step) -> None:
    unit = step.unit
    if unit is not None:
        unit.fence, unit.retry_at = 0, 0.0
        unit.lock = unit.parked = unit.waiting = None
    if step.items is not None:
        states = step.items.states
        for item, tried in step.items.units.items():
            if states[item] == _ITEM_BYTE[ItemState.RUNNING] and tried is not None:
                states[item] = _ITEM_BYTE[ItemState.PENDING]
        step.items.units.clear()


def _keep_progress(step: Step, before: Step) -> None:
    """Take over the finished items, or the finished rounds, of a step that is tried again."""
    step.iteration = before.iteration
    step.loop_state = before.loop_state
    step.nested = before.nested
    if before.items is not None:
        items = before.items
        for item in items.errors:
            items.states[item] = _ITEM_BYTE[ItemState.PENDING]
            items.outputs[item] = None
        items.errors.clear()
        items.done = items.states.count(_ITEM_BYTE[ItemState.SUCCESS])
        items.failed = 0
        items.units.clear()
        step.items = items
