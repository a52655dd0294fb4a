"""Checks the invariants of a run store over its history. Pure: facts in, violations out.

It keeps its own books and shares no state machine with the engine, so that a defect there cannot hide itself here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import HeadraceError
from pipelines.engine import events as ev
from pipelines.verify.books import ENDED, Graph, RunBook, StepBook, run_of
from pipelines.verify.report import Report, Violation

__all__ = ["KEY_RETENTION_S", "Checker"]

KEY_RETENTION_S = 86_400.0
"""After this many seconds a run store may forget an idempotency key."""


class Checker:
    """Feed it every fact of one log in order (`feed`), then read `report`.

    When the history begins with a snapshot, `load` takes the engine's state in it first; invariants that span the
    snapshot are then checked as far as that state tells.
    """

    def __init__(self, *, log: str = "") -> None:
        self.report = Report()
        self.submitted: set[str] = set()
        self.evicted: dict[str, frozenset[str]] = {}
        """Finished runs that left memory, with their committed steps."""
        self._log = log
        self._position: int | None = None
        self._event: Any = None
        self._fence = 0
        self._graphs: dict[str, Graph | None] = {}
        self._runs: dict[str, RunBook] = {}
        self._keys: dict[str, tuple[str, float]] = {}

    def load(self, engine: Mapping[str, Any], keys: Iterable[tuple[str, str, float]] = ()) -> None:
        """Start from a snapshot: the engine's state as JSON, and (key, run id, accepted at) of idempotency keys."""
        self._fence = int(engine["fence"])
        for plan in engine["plans"]:
            self._define(plan["digest"], plan["spec"])
        for record in engine["runs"]:
            self._runs[record["id"]] = run_of(record)
            self.submitted.add(record["id"])
        self._keys = {key: (run_id, at) for key, run_id, at in keys}

    @property
    def keys(self) -> Mapping[str, tuple[str, float]]:
        """Idempotency key to its newest run in this log, and when that was accepted."""
        return self._keys

    def feed(self, event: ev.Event, *, position: int | None = None) -> None:
        """Take the next fact."""
        self._position, self._event = position, event
        self.report.counts["facts"] += 1
        handler = getattr(self, f"_on_{type(event).__name__}", None)
        if handler is not None:
            handler(event)

    def note_archived(self, run_ids: Iterable[str]) -> None:
        """These finished runs stand in the archive."""
        archived = set(run_ids)
        self._position, self._event = None, None
        for run_id in sorted(self.evicted.keys() - archived - self._runs.keys()):
            self._broken("nothing_lost", f"run {run_id} has left memory, and no archive holds it", run_id=run_id)
        self.submitted |= archived

    def note_collected(self, run_ids: Iterable[str]) -> None:
        """These finished runs were given up, as `state.retention` says."""
        for run_id in run_ids:
            self.report.counts["runs collected"] += 1
            self.submitted.add(run_id)
            if self.evicted.pop(run_id, None) is None and run_id in self._runs:
                self._broken("nothing_lost", f"run {run_id} was collected while it was in memory", run_id=run_id)

    # ---- runs ----

    def _on_WorkflowRegistered(self, e: ev.WorkflowRegistered) -> None:
        self._define(e.digest, e.spec)

    def _define(self, digest: str, spec: Mapping[str, Any]) -> None:
        if digest not in self._graphs:
            try:
                self._graphs[digest] = Graph(spec)
            except (ValueError, HeadraceError) as error:
                self._graphs[digest] = None
                self._broken("known", f"definition {digest} cannot be read: {error}")

    def _on_RunSubmitted(self, e: ev.RunSubmitted) -> None:
        self.report.counts["runs"] += 1
        if e.run_id in self.submitted:
            self._broken("one_result", f"run {e.run_id} was submitted twice")
        self.submitted.add(e.run_id)
        if e.digest not in self._graphs:
            self._broken("known", f"run {e.run_id} has a definition that was never recorded ({e.digest})")
        key = (e.meta or {}).get("key")
        if key:
            before = self._keys.get(key)
            if before is not None and before[0] != e.run_id and e.at - before[1] < KEY_RETENTION_S:
                self._broken("one_key_one_run", f"idempotency key {key!r} gave run {before[0]} and run {e.run_id}")
            self._keys[key] = (e.run_id, e.at)
        self._runs[e.run_id] = RunBook(e.digest)

    def _on_RunSucceeded(self, e: ev.RunSucceeded) -> None:
        run = self._end_run(e.run_id, "SUCCESS")
        graph = self._graphs.get(run.digest) if run else None
        if run is None or graph is None:
            return
        unended = [step_id for step_id in graph.deps if run.step(step_id).state not in ENDED]
        if unended:
            self._broken("complete", f"run {e.run_id} succeeded while {', '.join(unended)} had not ended")

    def _on_RunFailed(self, e: ev.RunFailed) -> None:
        self._close_steps(self._end_run(e.run_id, "FAILED"))

    def _on_RunCancelled(self, e: ev.RunCancelled) -> None:
        self._close_steps(self._end_run(e.run_id, "CANCELLED"))

    def _end_run(self, run_id: str, state: str) -> RunBook | None:
        run = self._run(run_id)
        if run is None:
            return None
        if run.state in ENDED:
            self._broken("terminal_states", f"run {run_id} was {run.state} and became {state}")
        run.state = state
        self.report.counts[f"runs {state}"] += 1
        return run

    def _close_steps(self, run: RunBook | None) -> None:
        for step in run.steps.values() if run else ():
            if step.state not in ENDED:
                step.state = "CANCELLED"
                step.open.clear()

    def _on_RunResumed(self, e: ev.RunResumed) -> None:
        run = self._run(e.run_id)
        if run is None:
            return
        if run.state not in ("FAILED", "CANCELLED"):
            self._broken("terminal_states", f"run {e.run_id} was resumed while it was {run.state}")
        steps: dict[str, StepBook] = {}
        for step_id, step in run.steps.items():
            if step_id in e.kept:
                steps[step_id] = step
                if not step.committed:
                    self._broken(
                        "one_result", f"a resume of {e.run_id} keeps {step_id}, which is {step.state}", step_id
                    )
            elif step.state == "SUCCESS" and e.digest == run.digest and not e.nested:
                self._broken("not_run_again", f"a resume of {e.run_id} drops the result of {step_id}", step_id)
            elif step_id in e.partial:
                fresh = steps[step_id] = StepBook()
                fresh.done = {item: True for item, succeeded in step.done.items() if succeeded}
                fresh.iteration = step.iteration
        for step_id in e.kept:
            if step_id not in run.steps:
                self._broken("one_result", f"a resume of {e.run_id} keeps {step_id}, which never ended", step_id)
        run.steps, run.digest, run.state = steps, e.digest, "RUNNING"
        self.report.counts["resumes"] += 1

    def _on_RunEvicted(self, e: ev.RunEvicted) -> None:
        run = self._run(e.run_id)
        if run is None:
            return
        if run.state not in ENDED:
            self._broken("nothing_lost", f"run {e.run_id} left memory while it was {run.state}")
        self.evicted[e.run_id] = frozenset(step_id for step_id, step in run.steps.items() if step.state == "SUCCESS")
        del self._runs[e.run_id]

    def _on_RunRestored(self, e: ev.RunRestored) -> None:
        run = self._runs[e.run_id] = run_of(e.record)
        self.submitted.add(e.run_id)
        for step_id in sorted(self.evicted.pop(e.run_id, frozenset())):
            if run.step(step_id).state != "SUCCESS":
                self._broken("not_run_again", f"run {e.run_id} came back without the result of {step_id}", step_id)

    # ---- steps ----

    def _on_StepStarted(self, e: ev.StepStarted) -> None:
        step = self._start(e.run_id, e.step_id)
        if step is not None:
            step.state = "RUNNING"

    def _on_StepDelayed(self, e: ev.StepDelayed) -> None:
        self._start(e.run_id, e.step_id)

    def _on_StepParked(self, e: ev.StepParked) -> None:
        self._start(e.run_id, e.step_id)

    def _on_AttemptStarted(self, e: ev.AttemptStarted) -> None:
        self.report.counts["attempts"] += 1
        if e.fence <= self._fence:
            self._broken("fences_grow", f"fence {e.fence} follows fence {self._fence}", e.step_id, e.item)
        self._fence = max(self._fence, e.fence)
        step = self._start(e.run_id, e.step_id)
        if step is None:
            return
        if e.item is not None and step.done.get(e.item):
            self._broken(
                "not_run_again", f"item {e.item} of {e.step_id} has its result and starts again", e.step_id, e.item
            )
        if e.iteration < step.iteration:
            self._broken(
                "not_run_again", f"round {e.iteration} of {e.step_id} has its result and starts again", e.step_id
            )
        step.state = "RUNNING"
        step.open[e.item] = e.fence

    def _start(self, run_id: str, step_id: str) -> StepBook | None:
        """Check that something of this step may begin now."""
        run = self._run(run_id)
        if run is None:
            return None
        step = run.step(step_id)
        if run.state == "CANCELLED":
            self._broken(
                "nothing_after_cancel", f"{step_id} of run {run_id} starts after the run was cancelled", step_id
            )
        elif run.state in ENDED:
            self._broken("terminal_states", f"{step_id} starts after run {run_id} became {run.state}", step_id)
        elif step.state == "SUCCESS":
            self._broken("not_run_again", f"{step_id} of run {run_id} has its result and starts again", step_id)
        elif step.state in ENDED:
            self._broken("terminal_states", f"{step_id} of run {run_id} was {step.state} and starts", step_id)
        elif step.state == "PENDING":
            graph = self._graphs.get(run.digest)
            why = graph.too_early(run, step_id) if graph is not None else None
            if why is not None:
                self._broken("dependencies", f"{step_id} of run {run_id} starts although {why}", step_id)
        return step

    def _on_AttemptFailed(self, e: ev.AttemptFailed) -> None:
        step = self._result(e.run_id, e.step_id, e.item, e.fence)
        if step is not None:
            step.open.pop(e.item, None)

    def _on_IterationSucceeded(self, e: ev.IterationSucceeded) -> None:
        step = self._result(e.run_id, e.step_id, None, e.fence)
        if step is None:
            return
        if e.iteration < step.iteration:
            self._broken("one_result", f"round {e.iteration} of {e.step_id} got a second result", e.step_id)
        step.iteration = max(step.iteration, e.iteration + 1)
        step.open.pop(None, None)
        self.report.counts["rounds committed"] += 1

    def _on_ItemSucceeded(self, e: ev.ItemSucceeded) -> None:
        self._end_item(e.run_id, e.step_id, e.item, e.fence, succeeded=True)
        self.report.counts["items committed"] += 1

    def _on_ItemFailed(self, e: ev.ItemFailed) -> None:
        self._end_item(e.run_id, e.step_id, e.item, e.fence, succeeded=False)

    def _end_item(self, run_id: str, step_id: str, item: int, fence: int, *, succeeded: bool) -> None:
        step = self._result(run_id, step_id, item, fence)
        if step is None:
            return
        if item in step.done:
            self._broken("one_result", f"item {item} of {step_id} of run {run_id} got a second result", step_id, item)
        step.done[item] = succeeded
        step.open.pop(item, None)

    def _on_StepSucceeded(self, e: ev.StepSucceeded) -> None:
        self._end_step(e.run_id, e.step_id, e.fence, "SUCCESS")
        self.report.counts["steps committed"] += 1

    def _on_StepFailed(self, e: ev.StepFailed) -> None:
        step = self._end_step(e.run_id, e.step_id, e.fence, "FAILED")
        if step is not None:
            step.handled = e.handled

    def _on_StepSkipped(self, e: ev.StepSkipped) -> None:
        self._end_step(e.run_id, e.step_id, 0, "SKIPPED")

    def _end_step(self, run_id: str, step_id: str, fence: int, state: str) -> StepBook | None:
        run = self._run(run_id)
        if run is None:
            return None
        step = run.step(step_id)
        if run.state in ENDED:
            self._broken("terminal_states", f"{step_id} became {state} after run {run_id} was {run.state}", step_id)
        elif step.state == "SUCCESS" and state == "SUCCESS":
            self._broken("one_result", f"{step_id} of run {run_id} got a second result", step_id)
        elif step.state in ENDED:
            self._broken("terminal_states", f"{step_id} of run {run_id} was {step.state} and became {state}", step_id)
        else:
            self._check_fence(step, step_id, None, fence)
        step.state = state
        step.open.clear()
        return step

    def _result(self, run_id: str, step_id: str, item: int | None, fence: int) -> StepBook | None:
        run = self._run(run_id)
        if run is None:
            return None
        step = run.step(step_id)
        if run.state in ENDED:
            self._broken("terminal_states", f"{step_id} got a result after run {run_id} was {run.state}", step_id, item)
        elif step.state in ENDED:
            self._broken("terminal_states", f"{step_id} of run {run_id} got a result after its end", step_id, item)
        else:
            self._check_fence(step, step_id, item, fence)
        return step

    def _check_fence(self, step: StepBook, step_id: str, item: int | None, fence: int) -> None:
        newest = step.open.get(item, 0)
        if fence and fence != newest and not (item is not None and item in step.done):
            told = f"the newest attempt has fence {newest}" if newest else "no attempt was under way"
            self._broken("fences_grow", f"a result with fence {fence} was taken although {told}", step_id, item)

    # ---- findings ----

    def _run(self, run_id: str) -> RunBook | None:
        run = self._runs.get(run_id)
        if run is None:
            self._broken("known", f"a {type(self._event).__name__} of run {run_id}, which was not submitted before")
        return run

    def _broken(
        self,
        invariant: str,
        message: str,
        step_id: str | None = None,
        item: int | None = None,
        *,
        run_id: str | None = None,
    ) -> None:
        self.report.violations.append(
            Violation(
                invariant=invariant,
                message=message,
                log=self._log,
                position=self._position,
                run_id=run_id or getattr(self._event, "run_id", None),
                step_id=step_id,
                item=item,
            )
        )
