"""What must always hold between the parts of memory. Called after every test; raises AssertionError with the run."""

from __future__ import annotations

from pipelines.engine.core import Core
from pipelines.engine.runs import ENDED, Run, Step, Unit, held_by
from pipelines.engine.states import RunState, StepState

__all__ = ["check"]


def check(core: Core) -> None:
    """Walk over every run and compare counters, states, fences, slots and locks."""
    fences: dict[int, str] = {}
    for run in core.state.runs.values():
        _check_run(core, run, fences)
    scheduler = core.scheduler
    per_queue: dict[str, int] = {}
    per_lock: dict[str, int] = {}
    for queue, lock in scheduler.running.values():
        per_queue[queue] = per_queue.get(queue, 0) + 1
        if lock is not None:
            per_lock[lock] = per_lock.get(lock, 0) + 1
    assert len(scheduler.running) <= scheduler.max_running, "more attempts run than limits.max_parallel_steps"
    for queue, count in scheduler.running_in.items():
        assert count == per_queue.get(queue, 0), f"queue {queue} counts {count}, but {per_queue.get(queue, 0)} run"
        assert count <= scheduler.queues.get(queue, scheduler.max_running), f"queue {queue} is over its limit"
    for key, entry in scheduler.locks.items():
        assert entry.held == per_lock.get(key, 0), f"lock {key} counts {entry.held}, but {per_lock.get(key, 0)} hold it"
    assert not core.state.touched, "a step was touched and not looked at"
    assert not core.children_ended, "a nested run ended and its parent does not know"


def _check_run(core: Core, run: Run, fences: dict[int, str]) -> None:
    open_steps = sum(step.state not in ENDED for step in run.steps)
    assert run.open == open_steps, f"{run.id}: counts {run.open} open steps, has {open_steps}"
    counted = [(s.done, s.ok, s.failed, s.sources_done, s.jumped) for s in run.steps]
    before = run.open, run.broken
    run.recount()
    assert [(s.done, s.ok, s.failed, s.sources_done, s.jumped) for s in run.steps] == counted, f"{run.id}: join counts"
    assert (run.open, run.broken) == before, f"{run.id}: counts of open or broken steps"
    if not run.ended:
        assert run.held == sum(map(held_by, run.steps)), f"{run.id}: counts {run.held} bytes of results"
    if run.ended:
        assert open_steps == 0, f"{run.id} is {run.state.value} with {open_steps} open steps"
    if run.state is RunState.SUCCESS:
        assert not run.broken, f"{run.id} is SUCCESS with a failed step"
        assert all(s.state is not StepState.CANCELLED for s in run.steps), f"{run.id} is SUCCESS with a cancelled step"
    if run.state is RunState.PENDING:
        assert all(s.state in (StepState.PENDING, StepState.SKIPPED) for s in run.steps), (
            f"{run.id} runs but is PENDING"
        )
    for planned, step in zip(run.plan.steps, run.steps, strict=True):
        for name, unit in _units(step):
            where = f"{run.id}/{planned.id}/{name}"
            if unit.fence:
                assert step.state is StepState.RUNNING, f"{where} has an attempt in flight and is {step.state.value}"
                assert unit.fence <= core.state.fence, f"{where} has a fence that was never given"
                assert unit.fence not in fences, f"{where} and {fences.get(unit.fence)} share fence {unit.fence}"
                fences[unit.fence] = where
        if step.items is not None:
            states = step.items.states
            assert step.items.done == states.count(2) + states.count(3), f"{run.id}/{planned.id}: done items"
            assert step.items.failed == states.count(3) == len(step.items.errors), (
                f"{run.id}/{planned.id}: failed items"
            )
            if step.state is StepState.SUCCESS:
                assert step.items.done == len(states), f"{run.id}/{planned.id} succeeded with open items"
        if step.state is StepState.RUNNING and step.items is None and planned.type != "approval":
            unit_now = step.unit
            moving = unit_now is not None and (
                unit_now.fence or unit_now.retry_at or unit_now.waiting or unit_now.parked
            )
            waits = step.waiting is not None or any((run.id, planned.index, None) in w for w in core.needed.values())
            assert moving or waits, f"{run.id}/{planned.id} is RUNNING and nothing will ever move it"


def _units(step: Step) -> list[tuple[str, Unit]]:
    found = [("", step.unit)] if step.unit is not None else []
    if step.items is not None:
        found += [(str(item), unit) for item, unit in step.items.units.items()]
    return found
