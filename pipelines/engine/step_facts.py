"""How the facts of steps, attempts and items change memory. It decides nothing.

Steps whose dependencies changed are noted in `touched` for the deciding side; a replay throws these notes away.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.engine import events as ev
from pipelines.engine.held import RUN_OUTPUT, Held
from pipelines.engine.runs import ITEM_STATES, Items, Run, Step, Unit, count_end, held_by, size_of
from pipelines.engine.states import ITEM_TABLE, STEP_TABLE, InvalidTransition, ItemState, StepState, move

__all__ = ["ITEM_BYTE", "StepFacts", "forget_attempts", "unit_of"]


class StepFacts(Held):
    """Base of `State`: one method for each fact of a step."""

    def _to(self, run: Run, index: int, step: Step, fact: str) -> None:
        following = STEP_TABLE[step.state].get(fact)
        if following is None:
            move(STEP_TABLE, step.state, fact, f"step {run.plan.steps[index].id} of run {run.id}")
        else:
            step.state = following

    def _end(self, run: Run, index: int, step: Step, at: float) -> None:
        step.finished_at = at
        step.waiting = None
        forget_attempts(step)
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
        self.run_started(run, e.at)
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
        items.states[item] = ITEM_BYTE[move(ITEM_TABLE, state, fact, what)]
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
        self.run_started(run, e.at)
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
            self.note_nested((e.run_id, e.step_id, e.item), self.runs[e.child])

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
        self.run_started(run, e.at)
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
        self.run_started(run, e.at)
        step.error = e.error
        step.handled = e.handled
        run.held += size_of(e.error)
        step.log = e.log or step.log
        _add_duration(step, e)
        if e.handled == "fail":
            run.broken += 1
        self._end(run, index, step, e.at)


ITEM_BYTE: Mapping[ItemState, int] = {state: byte for byte, state in enumerate(ITEM_STATES)}


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


def forget_attempts(step: Step) -> None:
    unit = step.unit
    if unit is not None:
        unit.fence, unit.retry_at = 0, 0.0
        unit.lock = unit.parked = unit.waiting = None
    if step.items is not None:
        states = step.items.states
        for item, tried in step.items.units.items():
            if states[item] == ITEM_BYTE[ItemState.RUNNING] and tried is not None:
                states[item] = ITEM_BYTE[ItemState.PENDING]
        step.items.units.clear()
