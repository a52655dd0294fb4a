"""Going on with a run that failed or was cancelled, also under an edited definition: what stays valid, and why not.

A committed step stays when its definition, its script and the values it read are the same; how it is scheduled (retry,
timeout, resources, priority, queue) may change freely. A nested workflow belongs to the definition of the step that
calls it: its edits count where a definition is named, and never in a plain resume, which keeps every committed step.
A nested run that failed goes on itself, under what its name means now, by the same rules; what was named for its
parent is named for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any

from cluster.errors import Conflict, HeadraceError
from pipelines.engine import events as ev
from pipelines.engine.core import Core
from pipelines.engine.held import RUN_OUTPUT
from pipelines.engine.plan import Plan, PlanStep
from pipelines.engine.render import context, render_input
from pipelines.engine.runs import Run, Step
from pipelines.engine.states import RunState, StepState
from pipelines.spec.values import ValueNeeded

__all__ = ["ResumePlan", "children_of", "plan_children", "plan_resume", "resume", "take_child", "wanted"]

MAX_CHILDREN = 20
_DEFINES = (
    "type", "run_if", "when", "image", "script", "function", "model", "parameters", "workflow", "url", "method",
    "headers", "query", "body", "expected_status", "message", "foreach", "loop", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePlan:
    """What a resume does. `kept`: committed and still valid. `partial`: goes on after its finished items or rounds.

    `again`: step id to the reason why it runs (again). `removed`: steps that the edited definition no longer has.
    """

    run_id: str
    digest: str
    kept: tuple[str, ...]
    partial: tuple[str, ...]
    again: Mapping[str, str]
    removed: tuple[str, ...]
    nested: tuple[str, ...] = ()
    """Steps in `again` because their nested workflow was edited."""
    children: Mapping[str, ResumePlan] = field(default_factory=dict)
    """What stays of nested runs that go on, by step (`sub`) or item (`sub[2]`), as long as their input is the same."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for showing."""
        return {
            "run_id": self.run_id,
            "digest": self.digest,
            "kept": list(self.kept),
            "partial": list(self.partial),
            "again": dict(self.again),
            "removed": list(self.removed),
            "children": {name: child.to_dict() for name, child in self.children.items()},
        }


def plan_resume(run: Run, plan: Plan, values: Mapping[str, Any], *, meant: Mapping[str, str] | None) -> ResumePlan:
    """Judge every step. `meant`: what each nested workflow means now (`State.meaning`, by name); None: a plain resume.

    Raises `Conflict` when the run has neither failed nor been cancelled.
    """
    if run.state not in (RunState.FAILED, RunState.CANCELLED):
        raise Conflict(f"run {run.id} is {run.state.value}: only a FAILED or CANCELLED run can be resumed")
    if plan.name != run.plan.name:
        raise Conflict(f"run {run.id} is of workflow {run.plan.name!r}, not {plan.name!r}")
    kept: dict[str, None] = {}
    partial: dict[str, None] = {}
    again: dict[str, str] = {}
    nested = _nested_edits(run, plan, meant or {})
    order = TopologicalSorter({p.id: [plan.steps[d].id for d in (*p.deps, *p.sources)] for p in plan.steps})
    for step_id in order.static_order():
        planned = plan.steps[plan.index[step_id]]
        index = run.plan.index.get(step_id)
        if index is None:
            again[step_id] = "it is new"
            continue
        before = run.steps[index]
        committed = before.state is StepState.SUCCESS or (
            before.state is StepState.FAILED and before.handled in ("continue", "goto")
        )
        progress = before.iteration > 0 or (before.items is not None and before.items.done > before.items.failed)
        if not committed and not progress:
            again[step_id] = _why_not_done(before)
            continue
        changed = None
        if step_id in nested:
            changed = f"its nested workflow changed: {planned.spec.workflow}"
        elif nested or plan.digest != run.plan.digest:
            changed = _changed(run, plan, run.plan.steps[index], planned, before, kept, values)
        if changed is not None:
            again[step_id] = changed
        elif committed:
            kept[step_id] = None
        else:
            partial[step_id] = None
    ids = [p.id for p in plan.steps]
    return ResumePlan(
        run_id=run.id,
        digest=plan.digest,
        kept=tuple(i for i in ids if i in kept),
        partial=tuple(i for i in ids if i in partial),
        again={i: again[i] for i in ids if i in again},
        removed=tuple(p.id for p in run.plan.steps if p.id not in plan.index),
        nested=tuple(i for i in ids if i in nested),
    )


def _nested_edits(run: Run, plan: Plan, meant: Mapping[str, str]) -> set[str]:
    """Steps that have results of a nested workflow which means something else now. What is not known is no edit."""
    found = set()
    for planned, step in zip(run.plan.steps, run.steps, strict=True):
        name = planned.spec.workflow
        if planned.type != "workflow" or name is None or name not in meant or planned.id not in plan.index:
            continue
        if plan.steps[plan.index[planned.id]].spec.workflow == name and set(step.nested or ()) - {meant[name]}:
            found.add(planned.id)
    return found


def _why_not_done(before: Step) -> str:
    if before.state is StepState.FAILED:
        return f"it failed: {(before.error or {}).get('message', '')}"
    if before.state is StepState.SKIPPED:
        return f"it was skipped ({before.reason}), which is decided again"
    return "it was cancelled before it ended" if before.started_at else "it had not run"


def _changed(
    run: Run,
    plan: Plan,
    old: PlanStep,
    new: PlanStep,
    before: Step,
    kept: Mapping[str, None],
    values: Mapping[str, Any],
) -> str | None:
    keys = [key for key in _DEFINES if getattr(old.spec, key) != getattr(new.spec, key)]
    if (before.error is not None or before.state is StepState.FAILED) and old.spec.on_error != new.spec.on_error:
        keys.append("on_error")
    if keys:
        return f"its definition changed: {', '.join(keys)}"
    if new.type == "python_script":
        known = run.plan.scripts.get(old.id), plan.scripts.get(new.id)
        same = known[0] == known[1] if known != (None, None) else run.plan.bundle == plan.bundle
        if not same:
            return "its script changed"
    reads = set(new.ref_ids) | (set(new.all_deps) if new.input is None and new.items is None else set())
    unsure = sorted(reads - set(kept))
    if unsure:
        return f"it reads {', '.join(unsure)}, which runs again"
    if old.spec.has_input == new.spec.has_input and old.spec.input == new.spec.input:
        if new.input is not None or old.all_deps == new.all_deps:
            return None
        return "it waits for other steps, whose outputs are its input"
    if new.items is not None or new.initial is not None:
        return "its input changed"
    try:
        was = render_input(run, old, context(run, old.ref_ids), values)
        now = render_input(run, new, context(run, new.ref_ids), values)
    except (HeadraceError, ValueNeeded, KeyError):
        return "its input changed"
    return None if was == now else "its input changed"


def plan_children(core: Core, run: Run, decided: ResumePlan, *, named: bool) -> ResumePlan:
    """The plan with those of the nested runs that go on with it, at most `MAX_CHILDREN` of them."""
    found: dict[str, ResumePlan] = {}
    for (_, step_id, item), child in sorted(_failed_children(core, run, until=math.inf).items(), key=_by_step):
        if step_id not in decided.again and step_id not in decided.partial:
            continue
        plan = _today(core, child)
        if plan is None or len(found) >= MAX_CHILDREN:
            continue
        inner = plan_resume(child, plan, core.values, meant=_meant(core, child, plan, named=named))
        name = step_id if item is None else f"{step_id}[{item}]"
        found[name] = plan_children(core, child, inner, named=named)
    return replace(decided, children=found)


def resume(core: Core, run: Run, plan: Plan, *, named: bool = False) -> None:
    """Put the run back to RUNNING, with what `plan_resume` keeps, and have what is due looked at. `named`: a definition
    was named, so that edits of nested workflows count."""
    decided = plan_resume(run, plan, core.values, meant=_meant(core, run, plan, named=named))
    core.emit(
        ev.RunResumed(
            run_id=run.id,
            digest=plan.digest,
            kept=decided.kept,
            partial=decided.partial,
            at=core.now,
            nested=decided.nested,
            named=named,
        )
    )
    core.forget_needs(run)
    if plan.spec.timeout is not None:
        core.timer(core.now + plan.spec.timeout, "run", run)
    for planned, step in zip(plan.steps, run.steps, strict=True):
        if step.state is StepState.PENDING:
            core.state.touched.append((run, planned.index))
    if not run.open:
        core.state.touched.append((run, RUN_OUTPUT))
    core.resumable.pop(run.id, None)


def take_child(core: Core, run: Run, planned: PlanStep, item: int | None, value: Any) -> tuple[Run, Plan] | None:
    """The nested run with which a resumed step (or item) goes on, once, and under which definition; None: it starts a
    new one, as it does when its input is another one now."""
    if not run.resumes:
        return None
    if run.id not in core.resumable:
        # Also after a crash: what failed before the resume is found again.
        failed = _failed_children(core, run, until=run.resumed_at)
        core.resumable[run.id] = {key: child.id for key, child in failed.items()}
    child_id = core.resumable[run.id].pop((run.id, planned.id, item), None)
    child = core.state.runs.get(child_id) if child_id is not None else None
    if child is None or child.state not in (RunState.FAILED, RunState.CANCELLED) or child.input != value:
        return None
    plan = _today(core, child)
    return None if plan is None or child.workflow != planned.spec.workflow else (child, plan)


def _failed_children(core: Core, run: Run, *, until: float) -> dict[tuple[str, str, int | None], Run]:
    """Nested runs that failed: they go on themselves, so that their committed steps are not run again either."""
    found: dict[tuple[str, str, int | None], Run] = {}
    if any(planned.type == "workflow" for planned in run.plan.steps):
        for child in core.state.runs.values():
            failed = child.state in (RunState.FAILED, RunState.CANCELLED) and child.finished_at <= until
            if failed and child.parent is not None and child.parent[0] == run.id:
                # Several tries of one step: the last one goes on.
                other = found.get(child.parent)
                if other is None or other.created_at <= child.created_at:
                    found[child.parent] = child
    return found


def wanted(core: Core, child: Run) -> bool:
    """Whether the run that called this one was resumed after it failed, and has not ended: it may go on with it."""
    parent = core.state.runs.get(child.parent[0]) if child.parent is not None else None
    if parent is None or parent.ended or child.state not in (RunState.FAILED, RunState.CANCELLED):
        return False
    return child.finished_at <= parent.resumed_at


def children_of(record: Mapping[str, Any]) -> list[str]:
    """The nested runs with which the steps of a run would go on, by its record (`Run.dump`)."""
    found: list[Any] = []
    for step in record["steps"].values():
        items = step.get("items") or {}
        found += [unit.get("child") for unit in (step.get("unit") or {}, *(items.get("units") or {}).values())]
        found += (items.get("children") or {}).values()
        # Records of earlier releases name those of items only here.
        errors = (step.get("error") or {}, *(items.get("errors") or {}).values())
        found += [(error.get("details") or {}).get("run_id") for error in errors]
    return list(dict.fromkeys(child for child in found if isinstance(child, str)))


def _by_step(entry: tuple[tuple[str, str, int | None], Run]) -> tuple[str, int]:
    (_, step_id, item), _ = entry
    return step_id, -1 if item is None else item


def _today(core: Core, run: Run) -> Plan | None:
    """What the run's workflow means now."""
    digest = core.state.latest.get(run.workflow)
    return None if digest is None else core.state.plan(digest)


def _meant(core: Core, run: Run, plan: Plan, *, named: bool) -> Mapping[str, str] | None:
    edited = named or plan.digest != run.digest
    return core.state.meanings() if edited and any(p.type == "workflow" for p in run.plan.steps) else None
