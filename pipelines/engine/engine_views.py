"""What can be seen of an engine: its definitions and runs, its state as JSON, its counts. Nothing changes here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from cluster.errors import NotFound
from pipelines.engine.codec import FORMAT
from pipelines.engine.core import Core
from pipelines.engine.invariants import check
from pipelines.engine.item_view import attempts_in_flight, item_page
from pipelines.engine.plan import Plan
from pipelines.engine.runs import Run
from pipelines.engine.states import RunState
from pipelines.engine.view import run_summary, run_view

__all__ = ["EngineViews"]


class EngineViews:
    """Base of `Engine`: everything that decides nothing."""

    _core: Core

    # --- the whole ------------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The state as JSON, for a snapshot."""
        return orjson.dumps({"format": FORMAT, **self._core.state.dump()}, option=orjson.OPT_NON_STR_KEYS)

    def dump_head(self) -> bytes:
        """As `dump`, without `runs`: each of them is `record_bytes`."""
        return orjson.dumps({"format": FORMAT, **self._core.state.dump_head()}, option=orjson.OPT_NON_STR_KEYS)

    @property
    def shares_slots(self) -> bool:
        """Whether locks and named queues are asked for (`AskSlot`)."""
        return self._core.limits.shared

    @property
    def lock_fence(self) -> int:
        """No lock was ever held here under a higher fence."""
        return max(self._core.state.fence, self._core.state.lock_fence)

    # --- definitions ----------------------------------------------------------------------------------------------

    @property
    def workflows(self) -> Mapping[str, Plan]:
        """The newest definition of every name."""
        state = self._core.state
        return {name: state.plans[digest] for name, digest in state.latest.items()}

    def bundles(self) -> frozenset[str]:
        """The digests of the folders of all definitions, old ones included."""
        return frozenset(plan.bundle for plan in self._core.state.plans.values() if plan.bundle is not None)

    def definitions(self) -> list[dict[str, Any]]:
        """All definitions as `register` takes them, the newest of each name after its older ones."""
        state = self._core.state
        newest = set(state.latest.values())
        plans = sorted(state.plans.values(), key=lambda plan: plan.digest in newest)
        return [{"name": plan.name, "spec": plan.raw, "bundle": plan.bundle, "scripts": plan.scripts} for plan in plans]

    def plan(self, digest: str) -> Plan:
        """A definition by its digest. Raises `NotFound`."""
        return self._core.state.plan(digest)

    # --- runs -----------------------------------------------------------------------------------------------------

    def record(self, run_id: str) -> dict[str, Any]:
        """All that is known of a run, as JSON: for the archive, `restore`, and `view_of_record`."""
        return self._core.state.run(run_id).dump()

    def record_bytes(self, run_id: str) -> bytes:
        """`record` as JSON text, as it stands in `dump`."""
        return orjson.dumps(self.record(run_id), option=orjson.OPT_NON_STR_KEYS)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._core.state.runs

    def __len__(self) -> int:
        return len(self._core.state.runs)

    def run_ids(self) -> list[str]:
        """Every run in memory, in the order of submission."""
        return list(self._core.state.runs)

    def run_state(self, run_id: str) -> RunState:
        """The state of a run in memory. Raises `NotFound`."""
        return self._core.state.run(run_id).state

    def view(self, run_id: str) -> dict[str, Any]:
        """A run as users see it: state, steps, why each one waits, progress, outputs, errors. Raises `NotFound`."""
        return run_view(self._core.state.run(run_id))

    def item_page(
        self, run_id: str, step_id: str, *, states: Collection[str] = (), after: int = -1, limit: int = 100
    ) -> dict[str, Any]:
        """Items of a `foreach` in memory, see `item_view.item_page`. Raises `NotFound`, `Conflict`."""
        run, index, _ = self._core.state.find(run_id, step_id)
        return item_page(run, index, states=states, after=after, limit=limit)

    def item_page_of_record(
        self,
        record: Mapping[str, Any],
        step_id: str,
        *,
        states: Collection[str] = (),
        after: int = -1,
        limit: int = 100,
    ) -> dict[str, Any]:
        """As `item_page`, for a run that is only in the archive."""
        run = Run.load(record, self._core.state.plan(record["digest"]))
        index = run.plan.index.get(step_id)
        if index is None:
            raise NotFound(f"run {run.id} of workflow {run.workflow!r} has no step {step_id!r}")
        return item_page(run, index, states=states, after=after, limit=limit)

    def attempts_in_flight(self, run_id: str) -> list[dict[str, Any]]:
        """What of a run in memory runs now: `{step, item, attempt, fence, started_at}`. Raises `NotFound`."""
        return attempts_in_flight(self._core.state.run(run_id))

    def view_of_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """As `view`, for a run that is only in the archive."""
        return run_view(Run.load(record, self._core.state.plan(record["digest"])))

    def summary(self, run_id: str) -> dict[str, Any]:
        """One row of a list of runs. Raises `NotFound`."""
        return run_summary(self._core.state.run(run_id))

    def slots(self) -> list[dict[str, Any]]:
        """Who holds and who waits for locks and named queues; see `Scheduler.slots`."""
        return self._core.scheduler.slots()

    def gauges(self) -> dict[str, Any]:
        """Counts for metrics: open runs, attempts in flight, attempts that wait per queue, for
        locks, and parked per breaker."""
        core = self._core
        return {
            "runs": len(core.state.runs),
            "running": len(core.scheduler.running),
            "waiting": core.scheduler.waiting(),
            "locked": core.scheduler.waiting_for_locks(),
            "parked": {key: len(parked) for key, parked in core.parked.items() if parked},
        }

    def check_invariants(self) -> None:
        """Raise AssertionError when memory contradicts itself. For tests: it walks over everything."""
        check(self._core)
