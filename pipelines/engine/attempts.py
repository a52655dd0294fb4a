"""From ready to ended: starting an attempt or a nested run, and what each way of ending means (retry, park, commit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import HeadraceError
from pipelines.engine import events as ev
from pipelines.engine.commands import StartAttempt
from pipelines.engine.core import Core
from pipelines.engine.ending import fail_step
from pipelines.engine.render import build_attempt, check_input, error_dict, render_input, step_context
from pipelines.engine.resume import resume, take_child
from pipelines.engine.runs import Run, Unit
from pipelines.engine.schedule import Ready
from pipelines.engine.sizes import inline_bytes
from pipelines.engine.states import RunState
from pipelines.engine.step_facts import unit_of
from pipelines.executor.port import Outcome
from pipelines.spec.models import RetrySpec
from pipelines.spec.values import ValueNeeded

__all__ = ["child_ended", "queue_unit", "start", "unit_failed", "unit_succeeded"]

LOST = frozenset({"worker_died", "worker_lost", "node_lost", "attempt_lost"})
"""The worker went away: not the step's fault, tried again up to `MAX_LOST` times without spending a retry."""
BUSY = frozenset({"overloaded", "unavailable", "storage_unavailable"})
"""Nobody could take the work just now: tried again up to `MAX_BUSY` times without spending a retry."""
PARKED = frozenset({"breaker_open", "circuit_open"})
NEVER = frozenset(
    {
        "cancelled", "forbidden", "http_refused", "image_unavailable", "invalid_config", "invalid_input", "not_found",
        "output_too_large", "result_not_serialisable", "script_not_found", "template_error", "too_large",
        "unauthorized", "unprocessable", "expression_error",
    }
)  # fmt: skip
"""Failures that trying again does not change."""
MAX_LOST = 3
MAX_BUSY = 20
_PROBE_S = 5.0


def queue_unit(core: Core, run: Run, index: int, item: int | None) -> None:
    """A step or item may start as soon as there is room: put it into its queue, or start its nested run."""
    planned, step = run.plan.steps[index], run.steps[index]
    unit = unit_of(step, item)
    if planned.type == "workflow":
        _start_child(core, run, index, item, unit)
        return
    lock = None
    if planned.lock_key is not None:
        try:
            ctx = step_context(run, planned, step, item, _item_value(core, run, index, item), core.values)
            lock = str(planned.lock_key.render(ctx, core.values))
        except ValueNeeded as needed:
            unit.waiting = "value"
            core.need(run, index, needed.reference, item)
            return
        except HeadraceError as error:
            broken(core, run, index, item, error.to_dict())
            return
    priority = planned.priority if planned.priority is not None else run.priority
    core.scheduler.push(
        Ready(
            run=run,
            index=index,
            item=item,
            unit=unit,
            # What ran when the process died was chosen before everything that waited.
            rank=0.0 if unit.fence else core.scheduler.rank(core.now, priority),
            queue=planned.queue,
            lock=lock,
            lock_limit=planned.lock_limit,
        )
    )


def _item_value(core: Core, run: Run, index: int, item: int | None) -> Any:
    return core.feeds[(run.id, index)].values[item] if item is not None else None


def start(core: Core, ready: Ready) -> None:
    """Begin an attempt that the scheduler chose, unless its breaker is open or its input cannot be made."""
    run, index, item, unit = ready.run, ready.index, ready.item, ready.unit
    planned, step = run.plan.steps[index], run.steps[index]
    fence = core.state.fence + 1
    try:
        attempt, breaker = build_attempt(
            run,
            planned,
            step,
            item=item,
            item_value=_item_value(core, run, index, item),
            attempt=unit.attempt + 1,
            fence=fence,
            values=core.values,
            lock_fence=ready.lock_fence,
            inline_bytes=inline_bytes(core, run, step),
        )
    except ValueNeeded as needed:
        unit.waiting = "value"
        core.need(run, index, needed.reference, item)
        core.scheduler.dropped(ready)
        return
    except HeadraceError as error:
        broken(core, run, index, item, error.to_dict())
        core.scheduler.dropped(ready)
        return
    if breaker is not None and core.breakers and core.breaker_open(breaker, fence):
        if unit.parked != breaker:
            core.emit(ev.StepParked(run_id=run.id, step_id=planned.id, item=item, key=breaker, at=core.now))
        core.park(ready, breaker)
        core.scheduler.dropped(ready)
        return
    core.emit(
        ev.AttemptStarted(
            run_id=run.id,
            step_id=planned.id,
            attempt=attempt.attempt,
            fence=fence,
            at=core.now,
            item=item,
            iteration=step.iteration,
            lock=ready.lock,
            lock_fence=ready.lock_fence,
        )
    )
    core.scheduler.start(ready, fence)
    if planned.timeout is not None:
        core.timer(core.now + planned.timeout + core.limits.attempt_grace_s, "attempt", run, index, item, fence)
    if planned.total_timeout is not None:
        core.timer(step.started_at + planned.total_timeout, "step", run, index, None, step.started_at)
    core.command(StartAttempt(attempt=attempt, merge_key=breaker if planned.merge else None))


def _start_child(core: Core, run: Run, index: int, item: int | None, unit: Unit) -> None:
    planned, step = run.plan.steps[index], run.steps[index]
    name = planned.spec.workflow or ""
    if run.depth + 1 > core.limits.max_nesting:
        error = f"workflows are nested deeper than limits.max_nesting ({core.limits.max_nesting})"
        broken(core, run, index, item, error_dict("nesting_too_deep", error))
        return
    digest = core.state.latest.get(name)
    if digest is None:
        broken(core, run, index, item, error_dict("not_found", f"there is no workflow {name!r}"))
        return
    plan = core.state.plans[digest]
    try:
        item_value = _item_value(core, run, index, item)
        ctx = step_context(run, planned, step, item, item_value, core.values, unit.attempt + 1)
        value = check_input(plan, render_input(run, planned, ctx, core.values))
    except ValueNeeded as needed:
        unit.waiting = "value"
        core.need(run, index, needed.reference, item)
        return
    except HeadraceError as error_raised:
        broken(core, run, index, item, error_raised.to_dict())
        return
    resumed = take_child(core, run, planned, item, value)
    child = core.ids() if resumed is None else resumed[0].id
    core.emit(
        ev.AttemptStarted(
            run_id=run.id,
            step_id=planned.id,
            attempt=unit.attempt + 1,
            fence=core.state.fence + 1,
            at=core.now,
            item=item,
            iteration=step.iteration,
            child=child,
        )
    )
    if planned.timeout is not None:
        core.timer(core.now + planned.timeout, "attempt", run, index, item, core.state.fence)
    if planned.total_timeout is not None:
        core.timer(step.started_at + planned.total_timeout, "step", run, index, None, step.started_at)
    if resumed is not None:
        resume(core, *resumed, named=run.named)
        return
    spec_seed = planned.spec.seed
    begin_run(
        core,
        ev.RunSubmitted(
            run_id=child,
            workflow=name,
            digest=digest,
            input=value,
            at=core.now,
            priority=planned.priority if planned.priority is not None else run.priority,
            seed=spec_seed if spec_seed is not None else run.seed,
            depth=run.depth + 1,
            parent=(run.id, planned.id, item),
        ),
    )


def begin_run(core: Core, submitted: ev.RunSubmitted) -> Run:
    """A new run: its first steps are to be looked at, its time begins."""
    core.emit(submitted)
    run = core.state.runs[submitted.run_id]
    if run.plan.spec.timeout is not None:
        core.timer(run.created_at + run.plan.spec.timeout, "run", run)
    for planned in run.plan.steps:
        if not planned.deps and not planned.sources:
            core.state.touched.append((run, planned.index))
    return run


def broken(core: Core, run: Run, index: int, item: int | None, error: Mapping[str, Any]) -> None:
    """A unit that cannot even start: no retry would change that."""
    if item is None:
        fail_step(core, run, index, error)
    else:
        core.emit(ev.ItemFailed(run_id=run.id, step_id=run.plan.steps[index].id, item=item, error=error, at=core.now))
        core.state.touched.append((run, index))


def unit_succeeded(core: Core, run: Run, index: int, item: int | None, fence: int, outcome: Outcome) -> None:
    """Commit a result. A step's dependents, its next item or its next round follow."""
    planned, step = run.plan.steps[index], run.steps[index]
    if item is not None:
        core.emit(
            ev.ItemSucceeded(
                run_id=run.id,
                step_id=planned.id,
                item=item,
                fence=fence,
                output=outcome.output,
                at=core.now,
                chosen=outcome.chosen,
                log=outcome.log,
                duration_s=outcome.duration_s,
            )
        )
        core.state.touched.append((run, index))
    elif planned.initial is not None:
        core.emit(
            ev.IterationSucceeded(
                run_id=run.id,
                step_id=planned.id,
                fence=fence,
                iteration=step.iteration,
                output=outcome.output,
                at=core.now,
                chosen=outcome.chosen,
                log=outcome.log,
                duration_s=outcome.duration_s,
            )
        )
        core.state.touched.append((run, index))
    else:
        core.emit(
            ev.StepSucceeded(
                run_id=run.id,
                step_id=planned.id,
                fence=fence,
                output=outcome.output,
                at=core.now,
                chosen=outcome.chosen,
                log=outcome.log,
                duration_s=outcome.duration_s,
            )
        )


def unit_failed(
    core: Core,
    run: Run,
    index: int,
    item: int | None,
    fence: int,
    error: Mapping[str, Any],
    *,
    log: Mapping[str, Any] | None = None,
    duration_s: float = 0.0,
) -> None:
    """An attempt failed: park it, try again later, or let the step or item fail for good."""
    planned, step = run.plan.steps[index], run.steps[index]
    unit = unit_of(step, item)
    spent, delay = judge(planned.retry, unit, error, core.random)
    if spent is None:
        if item is None:
            fail_step(core, run, index, error, fence=fence, log=log, duration_s=duration_s)
            return
        core.emit(
            ev.ItemFailed(
                run_id=run.id,
                step_id=planned.id,
                item=item,
                error=error,
                at=core.now,
                fence=fence,
                log=log,
                duration_s=duration_s,
            )
        )
        core.state.touched.append((run, index))
        return
    key = _breaker_key(error) if spent == "parked" else None
    core.emit(
        ev.AttemptFailed(
            run_id=run.id,
            step_id=planned.id,
            fence=fence,
            error=error,
            retry_at=core.now + delay,
            at=core.now,
            item=item,
            spent=spent,
            key=key,
            log=log,
            duration_s=duration_s,
        )
    )
    core.timer(unit.retry_at, "retry", run, index, item, unit.retry_at)


def _breaker_key(error: Mapping[str, Any]) -> str:
    details = error.get("details")
    key = details.get("breaker") if isinstance(details, Mapping) else None
    return str(key or "unknown")


def judge(retry: RetrySpec, unit: Unit, error: Mapping[str, Any], random: Any) -> tuple[str | None, float]:
    """What a failure costs and how long to wait, or (None, 0) when it is final.

    Waits grow as `initial_interval * backoff**n` up to `max_interval`, times 1 ± jitter; a server's Retry-After is the
    least that is waited.
    """
    code = str(error.get("code", ""))
    details = error.get("details")
    details = details if isinstance(details, Mapping) else {}
    after = float(error.get("retry_after_s") or 0.0)
    if code in PARKED or "breaker" in details:
        return "parked", max(after, _PROBE_S)
    if code in NEVER or any(
        name in retry.non_retryable for name in (code, details.get("type"), details.get("exception"))
    ):
        return None, 0.0
    if code in LOST and unit.lost < MAX_LOST:
        return "lost", min(30.0, 0.5 * 2.0**unit.lost)
    if code in BUSY and unit.busy < MAX_BUSY:
        return "busy", max(after, min(30.0, 0.5 * 2.0**unit.busy) * (0.75 + 0.5 * random()))
    if unit.failures + 1 >= retry.max_attempts:
        return None, 0.0
    wait = min(retry.max_interval, retry.initial_interval * retry.backoff ** min(unit.failures, 64))
    return "failure", max(after, wait * (1 + retry.jitter * (2 * random() - 1)))


def child_ended(core: Core, child: Run) -> None:
    """A nested run ended: its parent's step succeeds or fails with it, unless the parent no longer cares."""
    assert child.parent is not None
    parent_id, step_id, item = child.parent
    parent = core.state.runs.get(parent_id)
    if parent is None or parent.ended or step_id not in parent.plan.index:
        return
    index = parent.plan.index[step_id]
    step = parent.steps[index]
    unit = step.unit if item is None else (step.items.units.get(item) if step.items is not None else None)
    if unit is None or unit.child != child.id or not unit.fence:
        return
    if child.state is RunState.SUCCESS:
        outcome = Outcome(status="success", output=child.output, duration_s=core.now - child.created_at)
        unit_succeeded(core, parent, index, item, unit.fence, outcome)
        return
    if child.state is RunState.CANCELLED:
        error = error_dict("child_cancelled", f"its run {child.id} was cancelled: {child.reason}", run_id=child.id)
    else:
        inner = child.error or {}
        error = error_dict(
            "child_failed", f"its run {child.id} failed: {inner.get('message', '')}", run_id=child.id, error=dict(inner)
        )
    unit_failed(core, parent, index, item, unit.fence, error, duration_s=core.now - child.created_at)
