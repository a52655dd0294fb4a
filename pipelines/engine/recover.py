"""After a crash: what of an open run must be started, queued or timed again. Attempts of before are taken for dead."""

from __future__ import annotations

from pipelines.engine.core import Core
from pipelines.engine.held import RUN_OUTPUT
from pipelines.engine.runs import Run, Unit
from pipelines.engine.states import StepState
from pipelines.engine.steps import arm_step_timeout

__all__ = ["recover_run"]


def recover_run(core: Core, run: Run) -> None:
    """Note everything that is due. Attempts in flight start again under a higher fence; that spends no retry."""
    touched = core.state.touched
    timeout = run.plan.spec.timeout
    if timeout is not None:
        core.timer((run.resumed_at or run.created_at) + timeout, "run", run)
    if not run.open:
        touched.append((run, RUN_OUTPUT))
        return
    for index, (planned, step) in enumerate(zip(run.plan.steps, run.steps, strict=True)):
        step.waiting = None
        if step.state is StepState.PENDING:
            if step.delay_until:
                step.waiting = "delay"
                core.timer(step.delay_until, "delay", run, index)
            if step.unit is not None:
                step.unit.waiting = None
            touched.append((run, index))
        elif step.state is StepState.RUNNING:
            arm_step_timeout(core, run, index, planned, step)
            if step.items is not None:
                for item, unit in step.items.units.items():
                    _recover_unit(core, run, index, item, unit)
            elif step.unit is not None:
                _recover_unit(core, run, index, None, step.unit)
            touched.append((run, index))


def _recover_unit(core: Core, run: Run, index: int, item: int | None, unit: Unit) -> None:
    unit.waiting = None
    if unit.child is not None and unit.fence and unit.child in core.state.runs:
        child = core.state.runs[unit.child]
        timeout = run.plan.steps[index].timeout
        if timeout is not None:
            core.timer(unit.started_at + timeout, "attempt", run, index, item, unit.fence)
        if child.ended:
            core.children_ended.append(child)
    elif unit.retry_at > core.now:
        core.timer(unit.retry_at, "retry", run, index, item, unit.retry_at)
    elif unit.attempt or item is not None:
        # `value` means: queue it when the step is looked at, which for a `foreach` is when its items are known again.
        unit.waiting = "value"
