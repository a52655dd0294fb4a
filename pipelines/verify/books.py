"""What the checker remembers of runs and steps, and what a definition says must come first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.spec.graph import dependencies
from pipelines.spec.models import WorkflowSpec

__all__ = ["ENDED", "Graph", "RunBook", "StepBook", "run_of"]

ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED", "SKIPPED"})


class StepBook:
    """One step: its state, its open attempts, and what of it has a result."""

    __slots__ = ("done", "handled", "iteration", "open", "state")

    def __init__(self) -> None:
        self.state = "PENDING"
        self.handled = "fail"
        self.open: dict[int | None, int] = {}
        """Item (None: the step itself) to the fence of its newest attempt."""
        self.done: dict[int, bool] = {}
        """Ended items, and whether they succeeded."""
        self.iteration = 0

    @property
    def committed(self) -> bool:
        """Whether a resume may keep what it did."""
        return self.state == "SUCCESS" or (self.state == "FAILED" and self.handled in ("continue", "goto"))


class RunBook:
    """One run: its definition's digest, its state, its steps by id."""

    __slots__ = ("digest", "state", "steps")

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.state = "RUNNING"
        self.steps: dict[str, StepBook] = {}

    def step(self, step_id: str) -> StepBook:
        """The step's book, opened when there is none."""
        found = self.steps.get(step_id)
        if found is None:
            found = self.steps[step_id] = StepBook()
        return found


class Graph:
    """What must have ended before a step starts."""

    __slots__ = ("deps", "run_if", "sources")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        workflow = WorkflowSpec.model_validate(spec)
        self.sources: dict[str, list[str]] = {}
        for step in workflow.steps:
            if step.on_error.goto is not None:
                self.sources.setdefault(step.on_error.goto, []).append(step.id)
        self.deps = {
            step_id: [dep for dep in found if dep not in self.sources.get(step_id, ())]
            for step_id, found in dependencies(workflow).items()
        }
        self.run_if = {step.id: step.run_if for step in workflow.steps}

    def too_early(self, run: RunBook, step_id: str) -> str | None:
        """Why a step of a run may not start yet, or None when it may."""
        if step_id not in self.deps:
            return "its definition has no such step"
        sources = [run.step(source) for source in self.sources.get(step_id, ())]
        if sources:
            if any(source.state not in ENDED for source in sources):
                return "a step that may go to it has not ended"
            if not any(source.state == "FAILED" and source.handled == "goto" for source in sources):
                return "no failure led to it"
        states = {dep: run.step(dep) for dep in self.deps[step_id]}
        good = [
            d for d, s in states.items() if s.state == "SUCCESS" or (s.state == "FAILED" and s.handled == "continue")
        ]
        failed = [dep for dep, step in states.items() if step.state == "FAILED"]
        unended = [dep for dep, step in states.items() if step.state not in ENDED]
        rule = self.run_if[step_id]
        if rule == "all_success" and len(good) < len(states):
            return f"{', '.join(dep for dep in states if dep not in good)} did not succeed before"
        if rule == "all_done" and unended:
            return f"{', '.join(unended)} had not ended"
        if rule == "any_success" and not good:
            return "none of its dependencies had succeeded"
        if rule == "any_failed" and not failed:
            return "none of its dependencies had failed"
        return None


def run_of(record: Mapping[str, Any]) -> RunBook:
    """From the engine's record of a run (in snapshots and in the archive)."""
    run = RunBook(record["digest"])
    run.state = record["state"]
    for step_id, raw in record["steps"].items():
        step = run.steps[step_id] = StepBook()
        step.state = raw["state"]
        step.handled = raw.get("handled") or "fail"
        step.iteration = int(raw.get("iteration", 0))
        fence = raw.get("unit", {}).get("fence", 0)
        if fence:
            step.open[None] = fence
        items = raw.get("items")
        if items is not None:
            step.done = {item: digit == "2" for item, digit in enumerate(items["states"]) if digit in "23"}
            for item, unit in items["units"].items():
                if unit.get("fence"):
                    step.open[int(item)] = unit["fence"]
    return run
