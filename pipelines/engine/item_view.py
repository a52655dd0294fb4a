"""The items of one `foreach` as users see them, in pages: a step with 10,000 of them is not shown at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from cluster.errors import Conflict
from pipelines.engine.runs import ITEM_STATES, Items, Run, Unit
from pipelines.engine.states import RunState, StepState

__all__ = ["attempts_in_flight", "item_page"]

SHOWN_OUTPUT_BYTES = 2048
"""A larger output is told by its size; `/runs/{id}/output?step=…&pointer=/{item}` has it."""


def item_page(run: Run, index: int, *, states: Collection[str], after: int, limit: int) -> dict[str, Any]:
    """Items with a greater number than `after`, in order, at most `limit`: `{items, next_cursor}`.

    Raises `Conflict` for a step that has no items (yet).
    """
    step, step_id = run.steps[index], run.plan.steps[index].id
    items = step.items
    if items is None:
        why = "is no foreach" if run.plan.steps[index].items is None else f"is {step.state.value} and has no items"
        raise Conflict(f"step {step_id!r} of run {run.id} {why}")
    shown: list[dict[str, Any]] = []
    for item in range(max(after + 1, 0), len(items.states)):
        state = _state(run, items, item)
        if not states or state in states:
            if len(shown) == limit:
                return {"items": shown, "next_cursor": shown[-1]["item"]}
            shown.append(_row(items, item, state))
    return {"items": shown, "next_cursor": None}


def attempts_in_flight(run: Run) -> list[dict[str, Any]]:
    """The attempts that run now: `{step, item, attempt, fence, started_at}`."""
    out: list[dict[str, Any]] = []
    for planned, step in zip(run.plan.steps, run.steps, strict=True):
        if step.state is not StepState.RUNNING:
            continue
        units: list[tuple[int | None, Unit]] = [(None, step.unit)] if step.unit is not None else []
        if step.items is not None:
            units += step.items.units.items()
        out += [
            {"step": planned.id, "item": item, "attempt": u.attempt, "fence": u.fence, "started_at": u.started_at}
            for item, u in units
            if u.fence and u.child is None
        ]
    return out


def _state(run: Run, items: Items, item: int) -> str:
    state = ITEM_STATES[items.states[item]].value
    return "CANCELLED" if run.state is RunState.CANCELLED and state in ("PENDING", "RUNNING") else state


def _row(items: Items, item: int, state: str) -> dict[str, Any]:
    unit = items.units.get(item)
    row: dict[str, Any] = {"item": item, "state": state, "attempts": unit.attempt if unit else items.attempts[item]}
    if state in ("SUCCESS", "FAILED"):
        row["duration_s"] = items.took[item] / 1000
    if unit is not None:
        if unit.started_at:
            row["started_at"] = unit.started_at
        if unit.child is not None:
            row["child_run_id"] = unit.child
        waiting = _waiting(unit)
        if waiting is not None:
            row["waiting"] = waiting
    if item in items.errors:
        row["error"] = items.errors[item]
    output = items.outputs[item]
    if output is not None:
        size = len(orjson.dumps(output, option=orjson.OPT_NON_STR_KEYS))
        if size <= SHOWN_OUTPUT_BYTES:
            row["output"] = output
        else:
            row["output_bytes"] = size
    return row


def _waiting(unit: Unit) -> dict[str, Any] | None:
    if unit.fence:
        return None
    if unit.parked is not None:
        return {"for": "breaker", "key": unit.parked}
    if unit.retry_at:
        return {"for": "retry", "until": unit.retry_at}
    return {"for": unit.waiting} if unit.waiting is not None else None
