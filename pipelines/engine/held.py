"""All definitions and all runs in memory: what facts change and decisions look at. It decides nothing."""

from __future__ import annotations

import hashlib
from collections import deque

from cluster.errors import NotFound
from pipelines.engine.plan import Plan
from pipelines.engine.runs import Run, Step
from pipelines.engine.states import RUN_TABLE, RunState, move

__all__ = ["RUN_OUTPUT", "Held"]

RUN_OUTPUT = -1
"""In place of a step's index: the run as a whole (its end and its output)."""


class Held:
    """Definitions and runs by their names, the highest fence ever given, and what is to be looked at again."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.latest: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.fence = 0
        self.lock_fence = 0
        """The highest that a lock over all shards was granted under here."""
        self.touched: deque[tuple[Run, int]] = deque()

    def run(self, run_id: str) -> Run:
        """The run in memory. Raises `NotFound`."""
        try:
            return self.runs[run_id]
        except KeyError:
            raise NotFound(f"there is no run {run_id!r} in memory") from None

    def plan(self, digest: str) -> Plan:
        """The compiled definition. Raises `NotFound`."""
        try:
            return self.plans[digest]
        except KeyError:
            raise NotFound(f"there is no workflow definition {digest!r}") from None

    def find(self, run_id: str, step_id: str) -> tuple[Run, int, Step]:
        """A run and one of its steps. Raises `NotFound`."""
        run = self.run(run_id)
        index = run.plan.index.get(step_id)
        if index is None:
            known = ", ".join(run.plan.index)
            raise NotFound(f"run {run_id} of workflow {run.workflow!r} has no step {step_id!r} (it has: {known})")
        return run, index, run.steps[index]

    def meaning(self, digest: str, _above: frozenset[str] = frozenset()) -> str:
        """Names what a definition does now, its nested workflows (and theirs) included: they are found by name, so an
        edit of one changes what its parents do without changing their digests."""
        names = sorted({p.spec.workflow for p in self.plans[digest].steps if p.type == "workflow" and p.spec.workflow})
        found = [self.latest[name] for name in names if name in self.latest]
        inner = [self.meaning(d, _above | {digest}) for d in found if d not in _above and d != digest]
        return hashlib.sha256("\n".join([digest, *inner]).encode()).hexdigest() if inner else digest

    def meanings(self) -> dict[str, str]:
        """`meaning` of the newest definition of each name."""
        return {name: self.meaning(digest) for name, digest in self.latest.items()}

    def note_nested(self, parent: tuple[str, str, int | None], child: Run) -> None:
        """A nested run works for this step: note what its definition means now."""
        run, index, step = self.find(parent[0], parent[1])
        spec = run.plan.steps[index].spec
        before = step.nested if spec.foreach is not None or spec.loop is not None else None
        meaning = self.meaning(child.digest)
        if before is None:
            step.nested = [meaning]
        elif meaning not in before:
            step.nested = [*before, meaning]

    def run_started(self, run: Run, at: float) -> None:
        """Something of the run began."""
        if run.state is RunState.PENDING:
            run.state = move(RUN_TABLE, run.state, "StepStarted", f"run {run.id}")
        if not run.started_at:  # (one that was cancelled before its first step is RUNNING since its resume)
            run.started_at = at
