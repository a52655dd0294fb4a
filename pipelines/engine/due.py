"""What is done when a timer goes off: retries, delays, and the timeouts of runs, steps and attempts."""

from __future__ import annotations

from pipelines.engine import events as ev
from pipelines.engine.attempts import queue_unit, unit_failed
from pipelines.engine.core import Core
from pipelines.engine.ending import attempt_in_flight, fail_run, fail_step, stop
from pipelines.engine.render import error_dict
from pipelines.engine.runs import Run, Step, Unit
from pipelines.engine.states import StepState
from pipelines.engine.steps import consider, retry_due

__all__ = ["fire"]


def fire(core: Core, kind: str, run: Run, index: int, item: int | None, mark: float) -> None:
    """A timer is due. It acts only where what it was set for still holds."""
    if kind == "run":
        timeout = run.plan.spec.timeout
        began = run.resumed_at or run.created_at
        if timeout is not None and began + timeout <= core.now:
            fail_run(core, run, error_dict("run_timeout", f"the run took longer than its timeout of {timeout:g} s"))
        return
    if index >= len(run.steps):
        return  # it was set before a resume under a definition with fewer steps
    planned, step = run.plan.steps[index], run.steps[index]
    if kind == "retry":
        retry_due(core, run, index, item, mark)
    elif kind == "delay":
        if step.state is StepState.PENDING and step.waiting == "delay":
            consider(core, run, index)
    elif kind == "loop":
        if step.state is StepState.RUNNING and step.waiting == "delay" and step.iteration == mark:
            step.waiting = None
            queue_unit(core, run, index, None)
    elif kind == "attempt":
        found = attempt_in_flight(core, run.id, planned.id, item, int(mark))
        if found is not None:
            _attempt_overdue(core, run, index, item, found[2])
    elif kind == "step" and step.state is StepState.RUNNING and step.started_at == mark:
        _step_overdue(core, run, index, step)


def _attempt_overdue(core: Core, run: Run, index: int, item: int | None, unit: Unit) -> None:
    planned = run.plan.steps[index]
    fence, child = unit.fence, unit.child
    error = error_dict("step_timeout", f"the attempt did not end within its timeout of {planned.timeout:g} s")
    unit_failed(core, run, index, item, fence, error, duration_s=core.now - unit.started_at)
    stop(core, run, [(planned.id, item, fence, child)], "timeout")


def _step_overdue(core: Core, run: Run, index: int, step: Step) -> None:
    planned = run.plan.steps[index]
    if planned.type == "approval" and planned.spec.on_timeout == "approve":
        output = {"approved": True, "by": "timeout"}
        core.emit(ev.StepSucceeded(run_id=run.id, step_id=planned.id, output=output, at=core.now))
        return
    limit = planned.total_timeout or 0.0
    if planned.type == "approval":
        code = "rejected" if planned.spec.on_timeout == "reject" else "approval_timeout"
        error = error_dict(code, f"nobody answered step {planned.id!r} within {limit:g} s")
    else:
        error = error_dict("step_timeout", f"step {planned.id!r} took longer than its timeout of {limit:g} s in all")
    fail_step(core, run, index, error)
