"""How steps and runs end: failures under `on_error`, cancelled attempts, nested runs, and what a parent learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import HeadraceError
from pipelines.engine import events as ev
from pipelines.engine.commands import CancelAttempt, RunEnded
from pipelines.engine.core import Core
from pipelines.engine.held import RUN_OUTPUT
from pipelines.engine.render import error_dict, run_output
from pipelines.engine.runs import Run, Step, Unit
from pipelines.engine.sizes import too_large
from pipelines.engine.states import RunState, StepState
from pipelines.spec.values import ValueNeeded

__all__ = ["attempt_in_flight", "cancel_run", "fail_run", "fail_step", "finish_run", "in_flight", "stop", "under_way_s"]

_InFlight = tuple[str, int | None, int, str | None]
"""(step id, item, fence, child run id)."""


def in_flight(run: Run, index: int, step: Step) -> list[_InFlight]:
    """Attempts of a step that have been started and not ended."""
    step_id = run.plan.steps[index].id
    found: list[_InFlight] = []
    if step.unit is not None and step.unit.fence:
        found.append((step_id, None, step.unit.fence, step.unit.child))
    if step.items is not None:
        found += [(step_id, item, u.fence, u.child) for item, u in step.items.units.items() if u.fence]
    return found


def attempt_in_flight(
    core: Core, run_id: str, step_id: str, item: int | None, fence: int
) -> tuple[Run, int, Unit] | None:
    """The attempt with this fence, while it is the one that counts: its run, the index of its step, its unit."""
    run = core.state.runs.get(run_id)
    if run is None or run.ended:
        return None
    index = run.plan.index.get(step_id)
    if index is None:
        return None
    step: Step = run.steps[index]
    if step.state is not StepState.RUNNING:
        return None
    unit = step.unit if item is None else (step.items.units.get(item) if step.items is not None else None)
    return (run, index, unit) if unit is not None and fence and unit.fence == fence else None


def under_way_s(core: Core, step: Step) -> float:
    """How long a step that ends by no attempt of its own (a `foreach`, a `loop`, an approval) has been under way."""
    return max(core.now - step.started_at, 0.0) if step.started_at else 0.0


def stop(core: Core, run: Run, attempts: list[_InFlight], reason: str) -> None:
    """Ask for the end of attempts that no longer count, and cancel nested runs among them."""
    for step_id, item, fence, child in attempts:
        if child is None:
            core.command(CancelAttempt(run_id=run.id, step_id=step_id, item=item, fence=fence, reason=reason))
        elif child in core.state.runs:
            cancel_run(core, core.state.runs[child], reason)


def _everything_in_flight(run: Run) -> list[_InFlight]:
    return [
        attempt
        for index, step in enumerate(run.steps)
        if step.state is StepState.RUNNING
        for attempt in in_flight(run, index, step)
    ]


def _close(core: Core, run: Run, attempts: list[_InFlight], reason: str) -> None:
    for index, planned in enumerate(run.plan.steps):
        if planned.items is not None:
            core.feeds.pop((run.id, index), None)
    core.scheduler.forget(run)
    core.command(RunEnded(run_id=run.id, state=run.state.value))
    stop(core, run, attempts, reason)
    if run.parent is not None:
        core.children_ended.append(run)


def cancel_run(core: Core, run: Run, reason: str) -> None:
    """End a run as CANCELLED: nothing of it starts any more, what runs is told to stop."""
    if run.ended:
        return
    attempts = _everything_in_flight(run)
    core.emit(ev.RunCancelled(run_id=run.id, reason=reason, at=core.now))
    _close(core, run, attempts, reason)


def fail_run(core: Core, run: Run, error: Mapping[str, Any]) -> None:
    """End a run as FAILED now, whatever still runs."""
    if run.ended:
        return
    attempts = _everything_in_flight(run)
    core.emit(ev.RunFailed(run_id=run.id, error=error, at=core.now))
    _close(core, run, attempts, str(error.get("message", "the run failed")))


def finish_run(core: Core, run: Run) -> None:
    """All steps have ended: decide what the run came to."""
    if run.ended or run.open:
        return
    if run.broken:
        fail_run(core, run, _first_failure(run))
        return
    try:
        output = run_output(run, core.values)
        excess = too_large(core, run, output)
    except ValueNeeded as needed:
        core.need(run, RUN_OUTPUT, needed.reference)
        return
    except HeadraceError as error:
        fail_run(core, run, error_dict(error.code, f"the run's output cannot be made: {error.message}"))
        return
    if excess is not None:
        fail_run(core, run, excess)
        return
    core.emit(ev.RunSucceeded(run_id=run.id, output=output, at=core.now))
    _close(core, run, [], "")


def _first_failure(run: Run) -> dict[str, Any]:
    broken = [
        (step.finished_at, planned.id, step.error)
        for planned, step in zip(run.plan.steps, run.steps, strict=True)
        if step.state is StepState.FAILED and step.handled == "fail"
    ]
    _, step_id, error = min(broken, key=lambda entry: entry[0])
    message = f"step {step_id!r} failed: {error.get('message', '')}"
    return error_dict(str(error.get("code", "step_error")), message, step=step_id, error=dict(error))


def fail_step(
    core: Core,
    run: Run,
    index: int,
    error: Mapping[str, Any],
    *,
    fence: int = 0,
    log: Mapping[str, Any] | None = None,
    duration_s: float = 0.0,
) -> None:
    """A step failed for good: `on_error` says what that means."""
    planned, step = run.plan.steps[index], run.steps[index]
    if not fence:
        duration_s = under_way_s(core, step)
    attempts = [a for a in in_flight(run, index, step) if a[2] != fence]
    action = planned.spec.on_error.action
    core.feeds.pop((run.id, index), None)
    if action == "default":
        core.emit(
            ev.StepSucceeded(
                run_id=run.id,
                step_id=planned.id,
                output=planned.spec.on_error.default,
                error=error,
                fence=fence,
                log=log,
                duration_s=duration_s,
                at=core.now,
            )
        )
    else:
        core.emit(
            ev.StepFailed(
                run_id=run.id,
                step_id=planned.id,
                error=error,
                handled=action,
                fence=fence,
                log=log,
                duration_s=duration_s,
                at=core.now,
            )
        )
    stop(core, run, attempts, f"step {planned.id} ended")
    if action == "fail" and run.plan.spec.fail_fast and run.state is RunState.RUNNING:
        fail_run(core, run, _first_failure(run))
