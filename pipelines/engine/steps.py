"""When a step may run and what its kind does then: joins, `when`, delays, `foreach`, `loop`, approvals.

`consider` may be called for any step at any time; it acts only where something is due, so each step starts once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from cluster.errors import HeadraceError
from pipelines.engine import events as ev
from pipelines.engine.attempts import broken, queue_unit
from pipelines.engine.core import Core, Feed, Reader
from pipelines.engine.ending import fail_run, fail_step, finish_run, under_way_s
from pipelines.engine.held import RUN_OUTPUT
from pipelines.engine.plan import PlanStep
from pipelines.engine.render import context, error_dict, kind_of
from pipelines.engine.runs import Run, Step
from pipelines.engine.sizes import too_large
from pipelines.engine.states import ItemState, StepState
from pipelines.spec.values import ValueNeeded, resolve

__all__ = ["consider", "join", "read_on", "retry_due"]

FIRE, WAIT = "fire", None
_PENDING = 0
assert list(ItemState)[_PENDING] is ItemState.PENDING


def join(planned: PlanStep, step: Step) -> str | None:
    """What the ended dependencies allow: `FIRE`, `WAIT`, or the reason to skip the step.

    `any_success` and `any_failed` fire at the first one; `all_success` is skipped at the first that cannot be.
    """
    if planned.sources:
        if step.sources_done < len(planned.sources):
            return WAIT
        if not step.jumped:
            return "no failure led here"
    total = len(planned.deps)
    rule = planned.run_if
    if rule == "all_success":
        if step.ok == total:
            return FIRE
        return "a dependency did not succeed" if step.done > step.ok else WAIT
    if rule == "all_done":
        return FIRE if step.done == total else WAIT
    reached = step.ok if rule == "any_success" else step.failed
    if reached:
        return FIRE
    if step.done < total:
        return WAIT
    return "no dependency succeeded" if rule == "any_success" else "no dependency failed"


def consider(core: Core, run: Run, index: int) -> None:
    """Do what is due for a step (or, with `RUN_OUTPUT`, for the run)."""
    if run.ended:
        return
    if run.held > core.limits.max_run_bytes and (excess := too_large(core, run)) is not None:
        fail_run(core, run, excess)
        return
    if index == RUN_OUTPUT:
        finish_run(core, run)
        return
    planned, step = run.plan.steps[index], run.steps[index]
    if step.state is StepState.RUNNING:
        _go_on(core, run, index, planned, step)
        return
    if step.state is not StepState.PENDING:
        return
    if step.unit is not None and step.unit.waiting not in (None, "value"):
        return
    verdict = join(planned, step)
    if verdict is WAIT:
        return
    if verdict != FIRE:
        core.emit(ev.StepSkipped(run_id=run.id, step_id=planned.id, reason=verdict, at=core.now))
        return
    try:
        if planned.when is not None and not step.delay_until and not _when(core, run, planned):
            core.emit(ev.StepSkipped(run_id=run.id, step_id=planned.id, reason="when", at=core.now))
            return
        if planned.delay and not step.delay_until:
            until = core.now + planned.delay
            core.emit(ev.StepDelayed(run_id=run.id, step_id=planned.id, until=until, at=core.now))
            core.timer(until, "delay", run, index)
        if step.delay_until > core.now:
            step.waiting = "delay"
            return
        step.waiting = None
        _begin(core, run, index, planned, step)
    except ValueNeeded as needed:
        step.waiting = "value"
        core.need(run, index, needed.reference)
    except HeadraceError as error:
        fail_step(core, run, index, error.to_dict())


def _when(core: Core, run: Run, planned: PlanStep) -> bool:
    assert planned.when is not None
    return planned.when.holds(context(run, planned.ref_ids), core.values)


def _begin(core: Core, run: Run, index: int, planned: PlanStep, step: Step) -> None:
    if planned.type == "approval":
        message = planned.message.render(context(run, planned.ref_ids), core.values) if planned.message else None
        core.emit(
            ev.StepStarted(
                run_id=run.id,
                step_id=planned.id,
                at=core.now,
                message=None if message is None else str(message),
            )
        )
        arm_step_timeout(core, run, index, planned, step)
    elif planned.items is not None:
        values = _items(core, run, planned)
        core.emit(ev.StepStarted(run_id=run.id, step_id=planned.id, at=core.now, count=len(values)))
        arm_step_timeout(core, run, index, planned, step)
        open_feed(core, run, index, step, values)
        feed(core, run, index, planned, step)
    elif planned.initial is not None and step.iteration:
        # Resumed in the middle of its rounds.
        core.emit(ev.StepStarted(run_id=run.id, step_id=planned.id, at=core.now))
        arm_step_timeout(core, run, index, planned, step)
        _next_round(core, run, index, planned, step)
    else:
        queue_unit(core, run, index, None)


def arm_step_timeout(core: Core, run: Run, index: int, planned: PlanStep, step: Step) -> None:
    """Have the step's own timeout looked at; attempts arm it too, as they may be what starts the step."""
    if planned.total_timeout is not None:
        core.timer(step.started_at + planned.total_timeout, "step", run, index, None, step.started_at)


def _items(core: Core, run: Run, planned: PlanStep) -> list[Any]:
    assert planned.items is not None
    values = planned.items.render(context(run, planned.ref_ids), core.values)
    values = resolve(values, core.values)
    if not isinstance(values, list):
        hint = '; where a step may be skipped, write "{{ steps.a.output or [] }}"' if values is None else ""
        raise _NotAList(f"foreach.items gave {kind_of(values)}, not a list{hint}")
    if len(values) > core.limits.max_foreach_items:
        raise _TooManyItems(
            f"foreach has {len(values)} items; limits.max_foreach_items is {core.limits.max_foreach_items}"
        )
    return values


class _NotAList(HeadraceError):
    code = "invalid_input"
    status = 400


class _TooManyItems(HeadraceError):
    code = "too_large"
    status = 413


def open_feed(core: Core, run: Run, index: int, step: Step, values: list[Any]) -> None:
    """Line up the items that have neither ended nor been tried."""
    items = step.items
    assert items is not None
    pending = deque(i for i, state in enumerate(items.states) if state == _PENDING and i not in items.units)
    core.feeds[(run.id, index)] = Feed(values, pending)


def feed(core: Core, run: Run, index: int, planned: PlanStep, step: Step) -> None:
    """Queue as many items as `max_parallel` allows, or end the step when they have all ended (or too many failed)."""
    items, spec = step.items, planned.spec.foreach
    assert items is not None
    assert spec is not None
    count = len(items.states)
    if items.failed and spec.on_failure != "continue":
        share = items.failed / count
        if spec.on_failure == "fail" or share > spec.threshold:
            first = min(items.errors)
            inner = items.errors[first]
            many = f" ({items.failed} of {count} failed)" if items.failed > 1 else f" of {count}"
            error = error_dict(
                str(inner.get("code", "step_error")) if spec.on_failure == "fail" else "too_many_items_failed",
                f"item {first}{many}: {inner.get('message', '')}",
                item=first,
                failed=items.failed,
                error=dict(inner),
            )
            fail_step(core, run, index, error)
            return
    if items.done == count:
        core.feeds.pop((run.id, index), None)
        core.emit(
            ev.StepSucceeded(
                run_id=run.id, step_id=planned.id, output=None, at=core.now, duration_s=under_way_s(core, step)
            )
        )
        return
    waiting = core.feeds.get((run.id, index))
    if waiting is None:
        return
    width = min(spec.max_parallel or core.limits.max_parallel_steps, core.limits.max_parallel_steps)
    while waiting.pending and len(items.units) < width:
        queue_unit(core, run, index, waiting.pending.popleft())
        if step.state is not StepState.RUNNING:
            return


def _go_on(core: Core, run: Run, index: int, planned: PlanStep, step: Step) -> None:
    """A RUNNING step was touched: an item or round ended, or a value arrived."""
    if step.items is not None:
        if (run.id, index) not in core.feeds:
            try:
                open_feed(core, run, index, step, _items(core, run, planned))
            except ValueNeeded as needed:
                core.need(run, index, needed.reference)
                return
            except HeadraceError as error:
                fail_step(core, run, index, error.to_dict())
                return
        for item, tried in list(step.items.units.items()):
            if tried.waiting == "value":
                queue_unit(core, run, index, item)
        feed(core, run, index, planned, step)
        return
    unit = step.unit
    if unit is not None and unit.waiting == "value":
        queue_unit(core, run, index, None)
    elif planned.initial is not None and step.iteration and (unit is None or not (unit.attempt or unit.waiting)):
        _next_round(core, run, index, planned, step)


def _next_round(core: Core, run: Run, index: int, planned: PlanStep, step: Step) -> None:
    """A round of a `loop` has ended: is it over, exhausted, or does another follow?"""
    spec = planned.spec.loop
    assert spec is not None
    if step.waiting == "delay":
        return
    over = False
    if planned.until is not None:
        ctx = context(run, planned.ref_ids)
        state = step.loop_state
        ctx["loop"] = {"index": step.iteration - 1, "state": state, "output": state, "first": step.iteration == 1}
        try:
            over = planned.until.holds(ctx, core.values)
        except ValueNeeded as needed:
            core.need(run, index, needed.reference)
            return
        except HeadraceError as error:
            fail_step(core, run, index, error.to_dict())
            return
    exhausted = step.iteration >= spec.max_iterations
    if over or (exhausted and (planned.until is None or spec.on_exhausted == "continue")):
        core.emit(
            ev.StepSucceeded(
                run_id=run.id, step_id=planned.id, output=None, at=core.now, duration_s=under_way_s(core, step)
            )
        )
    elif exhausted:
        message = f"`until` did not hold after {spec.max_iterations} iterations: {spec.until}"
        fail_step(core, run, index, error_dict("loop_exhausted", message))
    elif spec.delay:
        step.waiting = "delay"
        core.timer(core.now + spec.delay, "loop", run, index, None, step.iteration)
    else:
        queue_unit(core, run, index, None)


def read_on(core: Core, reader: Reader, error: Mapping[str, Any] | None) -> None:
    """A spilled value that was looked into is here, or (`error`) cannot be had: what waits for it goes on, or fails."""
    run_id, index, item = reader
    run = core.state.runs.get(run_id)
    if run is None or run.ended:
        return
    if index == RUN_OUTPUT:
        if error is None:
            core.state.touched.append((run, index))
        else:
            fail_run(core, run, error)
        return
    step = run.steps[index]
    if item is None:
        if error is None:
            core.state.touched.append((run, index))
        elif step.state in (StepState.PENDING, StepState.RUNNING):
            fail_step(core, run, index, error)
        return
    unit = step.items.units.get(item) if step.items is not None else None
    if unit is None or unit.waiting != "value" or (run.id, index) not in core.feeds:
        return  # it has ended since, or is queued when the list of items is known again
    if error is None:
        queue_unit(core, run, index, item)
    else:
        broken(core, run, index, item, error)


def retry_due(core: Core, run: Run, index: int, item: int | None, mark: float) -> None:
    """The wait before another try is over, if it still is the wait that the timer was set for."""
    step = run.steps[index]
    unit = step.unit if item is None else (step.items.units.get(item) if step.items is not None else None)
    if step.state is not StepState.RUNNING or unit is None or unit.retry_at != mark or unit.waiting is not None:
        return
    if item is not None and (run.id, index) not in core.feeds:
        # After a restart the list of items is still being fetched; `_go_on` queues what waits for it.
        unit.waiting = "value"
        return
    queue_unit(core, run, index, item)
