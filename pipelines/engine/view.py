"""What users see of a run: JSON for `GET /runs/{id}`, the CLI and the console. Says why each step waits."""

from __future__ import annotations

from typing import Any

from pipelines.engine.plan import PlanStep
from pipelines.engine.runs import Items, Run, Step, Unit
from pipelines.engine.states import StepState

__all__ = ["run_summary", "run_view"]

_SHOWN_ERRORS = 20


def run_summary(run: Run) -> dict[str, Any]:
    """One row of a list of runs; well under 1 KiB."""
    error = run.error or {}
    return {
        "id": run.id,
        "workflow": run.workflow,
        "state": run.state.value,
        "created_at": run.created_at,
        "started_at": run.started_at or None,
        "finished_at": run.finished_at or None,
        "error": str(error.get("message", ""))[:300] or None,
        "parent": run.parent[0] if run.parent is not None else None,
    }


def run_view(run: Run) -> dict[str, Any]:
    """The whole run, steps in the order of the definition. Times in seconds since the epoch."""
    out = run_summary(run)
    out.update(
        error=run.error,
        reason=run.reason,
        digest=run.digest,
        input=run.input,
        output=run.output,
        priority=run.priority,
        seed=run.seed,
        depth=run.depth,
        parent=list(run.parent) if run.parent is not None else None,
        resumes=run.resumes,
        meta=run.meta,
        steps=[_step_view(run, p, s) for p, s in zip(run.plan.steps, run.steps, strict=True)],
    )
    return out


def _step_view(run: Run, planned: PlanStep, step: Step) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": planned.id,
        "type": planned.type,
        "state": step.state.value,
        "depends_on": [run.plan.steps[d].id for d in (*planned.deps, *planned.sources)],
        "started_at": step.started_at or None,
        "finished_at": step.finished_at or None,
        "duration_s": step.duration_s,
        "output": step.output,
        "error": step.error,
    }
    for name in ("reason", "chosen", "log", "message", "handled"):
        value = getattr(step, name)
        if value is not None:
            out[name] = value
    unit = step.unit
    if unit is not None:
        out["attempts"] = unit.attempt
        if unit.child is not None:
            out["child_run_id"] = unit.child
    if planned.initial is not None:
        out["iteration"] = step.iteration
    items = step.items
    if items is not None:
        running = [u for u in items.units.values() if u.fence]
        out["progress"] = {
            "total": len(items.states),
            "done": items.done - items.failed,
            "failed": items.failed,
            "running": len(running),
        }
        if items.errors:
            shown = sorted(items.errors)[:_SHOWN_ERRORS]
            out["item_errors"] = {str(i): items.errors[i] for i in shown}
        children = {str(i): u.child for i, u in list(items.units.items())[:_SHOWN_ERRORS] if u.child}
        if children:
            out["child_run_ids"] = children
    waiting = None if run.ended else _waiting(planned, step)
    if waiting is not None:
        out["waiting"] = waiting
    return out


def _waiting(planned: PlanStep, step: Step) -> dict[str, Any] | None:
    if step.state is StepState.PENDING:
        if step.waiting == "delay" or step.delay_until:
            return {"for": "delay", "until": step.delay_until}
        if step.unit is not None and (reason := _unit_waiting(step.unit)) is not None:
            return reason
        return {"for": step.waiting or "dependencies"}
    if step.state is not StepState.RUNNING:
        return None
    if planned.type == "approval":
        return {"for": "approval"}
    if step.items is not None:
        return _items_waiting(step.items)
    if step.waiting == "delay":
        return {"for": "delay"}
    return _unit_waiting(step.unit) if step.unit is not None else None


def _items_waiting(items: Items) -> dict[str, Any] | None:
    """Of a `foreach`: a breaker that holds items back, or what all of those wait for that could run now."""
    parked = sorted({u.parked for u in items.units.values() if u.parked})
    if parked:
        return {"for": "breaker", "key": parked[0]}
    if any(unit.fence for unit in items.units.values()):
        return None
    return next((reason for u in items.units.values() if (reason := _unit_waiting(u)) is not None), None)


def _unit_waiting(unit: Unit) -> dict[str, Any] | None:
    if unit.fence:
        return None
    if unit.parked is not None:
        return {"for": "breaker", "key": unit.parked}
    if unit.waiting in ("queue", "lock"):
        return {"for": unit.waiting, "key": unit.waits_on}
    if unit.retry_at:
        return {"for": "retry", "until": unit.retry_at}
    return {"for": unit.waiting} if unit.waiting is not None else None
