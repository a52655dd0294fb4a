"""The engine's inputs: each decides, applies, and returns facts and commands. Use: the package's docstring."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from cluster.errors import Conflict, CorruptObject, FormatVersionUnsupported, NotFound, Overloaded, Unprocessable
from cluster.slots.protocol import Grant
from pipelines.engine import events as ev
from pipelines.engine import resume as resuming
from pipelines.engine.attempts import begin_run, child_ended, start, unit_failed, unit_succeeded
from pipelines.engine.codec import FORMAT
from pipelines.engine.commands import Decision, RunEnded
from pipelines.engine.core import PROBE_AGAIN_S, VALUES_BYTES, Breaker, Core, EngineLimits
from pipelines.engine.due import fire
from pipelines.engine.ending import attempt_in_flight, cancel_run, fail_step
from pipelines.engine.engine_views import EngineViews
from pipelines.engine.plan import Plan, definition_digest, spec_to_dict
from pipelines.engine.recover import recover_run
from pipelines.engine.render import check_input, error_dict
from pipelines.engine.sizes import too_much_read
from pipelines.engine.states import StepState
from pipelines.engine.steps import consider, read_on
from pipelines.executor.port import Outcome
from pipelines.spec.models import WorkflowSpec

__all__ = ["Engine"]


class Engine(EngineViews):
    """All runs of one shard. `ids` makes ids for nested runs, `random` draws jitter; both only while deciding."""

    def __init__(
        self, *, ids: Callable[[], str], random: Callable[[], float], limits: EngineLimits | None = None
    ) -> None:
        self._core = Core(ids=ids, random=random, limits=limits or EngineLimits())

    # --- snapshot, replay, recovery ---------------------------------------------------------------------------------

    def on_before_change(self, listener: Callable[[str], None] | None) -> None:
        """Have it called with the id of every run that a fact is about to change; None: no more."""
        self._core.state.before_change = listener

    def load(self, data: bytes) -> None:
        """Replace the state by a snapshot. Raises `CorruptObject` or `FormatVersionUnsupported`."""
        try:
            raw = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise CorruptObject(f"the engine's snapshot is not JSON: {error}") from None
        if raw.get("format") != FORMAT:
            raise FormatVersionUnsupported(
                f"the engine's snapshot has format {raw.get('format')}; this release reads format {FORMAT}"
            )
        self._core.state.load(raw)
        self._core.reset()

    def replay(self, events: Iterable[ev.Event]) -> None:
        """Apply facts from the log. Nothing is decided: call `recover` when all have been applied."""
        apply, touched = self._core.state.apply, self._core.state.touched
        for event in events:
            apply(event)
            touched.clear()

    def recover(self, now: float) -> Decision:
        """After `load` and `replay`: start again what was running (under higher fences), rebuild queues and timers.

        The decision also names, as `RunEnded`, every finished run that has not been evicted.
        """
        core = self._begin(now)
        core.reset()
        for run in list(core.state.runs.values()):
            if run.ended:
                core.command(RunEnded(run_id=run.id, state=run.state.value))
            else:
                recover_run(core, run)
        return self._decide()

    # --- definitions ------------------------------------------------------------------------------------------------

    def register(
        self,
        spec: WorkflowSpec | Mapping[str, Any],
        *,
        now: float,
        bundle: str | None = None,
        scripts: Mapping[str, str] | None = None,
    ) -> Decision:
        """Make a definition the newest of its name; `decision.digest` names it. Known already: no events.

        `bundle` is the digest of its folder, `scripts` maps step ids to the SHA-256 of their scripts.
        Raises `InvalidConfig` with all problems.
        """
        raw = spec_to_dict(spec) if isinstance(spec, WorkflowSpec) else dict(spec)
        name = str(raw["name"])
        digest = definition_digest(raw, bundle, scripts)
        core = self._begin(now)
        if core.state.latest.get(name) != digest:
            core.emit(ev.WorkflowRegistered(name=name, digest=digest, spec=raw, bundle=bundle, scripts=scripts, at=now))
        decision = self._decide()
        decision.digest = digest
        return decision

    # --- runs -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        workflow: str,
        input: Any = None,
        *,
        run_id: str,
        now: float,
        digest: str | None = None,
        priority: int | None = None,
        seed: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Decision:
        """A new run of the newest definition (or of `digest`).

        Raises `NotFound`, `InvalidInput` (against the declared inputs), `Conflict` for a run id that exists, and
        `Overloaded` when `limits.max_open_runs` runs are in memory.
        """
        core = self._begin(now)
        name = digest or core.state.latest.get(workflow)
        if name is None:
            known = ", ".join(sorted(core.state.latest)) or "none"
            raise NotFound(f"there is no workflow {workflow!r} (known: {known})")
        plan = core.state.plan(name)
        if plan.name != workflow:
            raise NotFound(f"workflow {workflow!r} has no definition {name!r}: that one is of {plan.name!r}")
        if run_id in core.state.runs:
            raise Conflict(f"run {run_id} exists already")
        if len(core.state.runs) >= core.limits.max_open_runs:
            raise Overloaded(
                f"{len(core.state.runs)} runs are open, and limits.max_queued_runs is {core.limits.max_open_runs}",
                retry_after_s=10,
            )
        value = check_input(plan, input)
        begin_run(
            core,
            ev.RunSubmitted(
                run_id=run_id,
                workflow=plan.name,
                digest=plan.digest,
                input=value,
                at=now,
                priority=plan.spec.priority if priority is None else priority,
                seed=plan.spec.seed if seed is None else seed,
                meta=meta,
            ),
        )
        return self._decide()

    def attempt_finished(
        self, run_id: str, step_id: str, item: int | None, fence: int, outcome: Outcome, *, now: float
    ) -> Decision:
        """How a `StartAttempt` ended. Refused when that attempt is no longer the one that counts."""
        core = self._begin(now)
        core.scheduler.finish(fence)
        found = attempt_in_flight(core, run_id, step_id, item, fence)
        if found is None:
            decision = self._decide()
            decision.refused = f"fence {fence} of step {step_id} of run {run_id} is stale: its result is not taken"
            return decision
        run, index, _ = found
        if outcome.status == "success":
            core.probe_succeeded(fence)
            unit_succeeded(core, run, index, item, fence, outcome)
        else:
            unit_failed(
                core, run, index, item, fence, _error_of(outcome), log=outcome.log, duration_s=outcome.duration_s
            )
        return self._decide()

    def cancel(self, run_id: str, *, now: float, reason: str = "cancelled by request") -> Decision:
        """End a run and its nested runs: nothing starts any more, what runs is told to stop. Raises `NotFound`.

        Refused (without events) when the run has ended.
        """
        core = self._begin(now)
        run = core.state.run(run_id)
        if run.ended:
            return Decision(refused=f"run {run_id} has ended already: {run.state.value}")
        cancel_run(core, run, reason)
        return self._decide()

    def signal(self, run_id: str, step_id: str, payload: Mapping[str, Any] | None, *, now: float) -> Decision:
        """Answer an approval: `{"approved": true|false, …}`; the payload becomes the step's output.

        Raises `NotFound`, `Conflict` when the step does not wait for an answer, `Unprocessable` for another payload.
        """
        core = self._begin(now)
        run, index, step = core.state.find(run_id, step_id)
        planned = run.plan.steps[index]
        if planned.type != "approval":
            raise Conflict(f"step {step_id!r} is of type {planned.type} and takes no signal")
        if run.ended or step.state is not StepState.RUNNING:
            raise Conflict(f"step {step_id!r} of run {run_id} is {step.state.value} and does not wait for a signal")
        answer = {"approved": True, **(payload or {})}
        if not isinstance(answer["approved"], bool):
            raise Unprocessable("a signal holds `approved: true` or `approved: false`")
        if answer["approved"]:
            core.emit(ev.StepSucceeded(run_id=run_id, step_id=step_id, output=answer, at=now))
        else:
            comment = answer.get("comment")
            message = f"step {step_id!r} was rejected" + (f": {comment}" if comment else "")
            fail_step(core, run, index, error_dict("rejected", message, answer=answer))
        return self._decide()

    def plan_resume(self, run_id: str, digest: str | None = None, *, plan: Plan | None = None) -> resuming.ResumePlan:
        """What a resume would keep and run again, with reasons; with `digest`, under an edited definition, or with
        `plan` under one that is not registered (yet).

        Raises `NotFound`, and `Conflict` when the run has not failed or been cancelled.
        """
        core = self._core
        run = core.state.run(run_id)
        named = plan is not None or digest is not None
        if plan is None:
            plan = core.state.plan(digest) if digest is not None else run.plan
        decided = resuming.plan_resume(run, plan, core.values, meant=core.state.meanings() if named else None)
        return resuming.plan_children(core, run, decided, named=named)

    def resume(self, run_id: str, *, now: float, digest: str | None = None) -> Decision:
        """Go on with a FAILED or CANCELLED run from its committed steps; with `digest`, from those that are still valid
        under that definition and today's nested workflows. Raises as `plan_resume`."""
        core = self._begin(now)
        run = core.state.run(run_id)
        plan = core.state.plan(digest) if digest is not None else run.plan
        resuming.resume(core, run, plan, named=digest is not None)
        return self._decide()

    def tick(self, now: float) -> Decision:
        """Everything that is due by now: retries, delays, timeouts."""
        core = self._begin(now)
        while core.timers and core.timers[0][0] <= now:
            _, _, kind, run_id, index, item, mark = heapq.heappop(core.timers)
            run = core.state.runs.get(run_id)
            if run is not None and not run.ended:
                fire(core, kind, run, index, item, mark)
        core.probe_again()
        return self._decide()

    def next_timer(self) -> float | None:
        """When `tick` is due next, in seconds since the epoch; None: no timer is set. May be early, never late."""
        core = self._core
        due = min((breaker.again_at for breaker in core.breakers.values()), default=math.inf)
        due = min(due, core.timers[0][0]) if core.timers else due
        return due if due < math.inf else None

    def breaker(self, key: str, state: str, *, now: float, probes: int = 1) -> Decision:
        """What a circuit breaker says: `open`, `half_open` (lets `probes` attempts through) or `closed`."""
        core = self._begin(now)
        if state == "closed":
            core.breakers.pop(key, None)
        else:
            half_open = Breaker("half_open", probes, probes, again_at=now + PROBE_AGAIN_S)
            core.breakers[key] = half_open if state == "half_open" else Breaker(state)
        if state != "open":
            core.unpark(key, probes if state == "half_open" else None)
        return self._decide()

    def granted(self, grants: Iterable[Grant], *, now: float) -> Decision:
        """What was asked for by `AskSlot` may start. A grant that nobody wants any more is given back."""
        core = self._begin(now)
        for grant in grants:
            core.scheduler.granted(grant.ticket, grant.fence)
        return self._decide()

    def value_fetched(
        self,
        sha256: str,
        value: Any = None,
        *,
        now: float,
        size: int | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Decision:
        """The answer to `FetchValue`: the JSON content and its bytes (None: they are counted here), or the error why it
        cannot be had, with which fails what looks into it."""
        core = self._begin(now)
        waiting = core.needed.pop(sha256, {})
        if size is None:
            size = len(orjson.dumps(value))
        if error is None:
            core.keep_value(sha256, value, size)
        for reader in waiting:
            at_once = core.fetched(sha256, size, reader)
            # What does not fit in all at once would be fetched in turns for ever.
            read_on(core, reader, too_much_read(at_once) if error is None and at_once > VALUES_BYTES else error)
        decision = self._decide()
        for reader in waiting:
            core.went_on(reader)
        return decision

    # --- leaving and coming back ------------------------------------------------------------------------------------

    def evict(self, run_id: str) -> Decision:
        """Forget a finished run. Raises `NotFound`; `Conflict` when it has not ended."""
        core = self._begin(self._core.now)
        run = core.state.run(run_id)
        if not run.ended:
            raise Conflict(f"run {run_id} is {run.state.value}: only a finished run can leave memory")
        core.emit(ev.RunEvicted(run_id=run_id))
        core.resumable.pop(run_id, None)
        return self._decide()

    def wanted(self, run_id: str) -> bool:
        """Whether a resumed run may yet go on with this finished one, which it called: then it should stay."""
        return resuming.wanted(self._core, self._core.state.run(run_id))

    def restore(self, record: Mapping[str, Any]) -> Decision:
        """Bring an evicted run back, to be resumed. Its definition must be known. Raises `NotFound`, `Conflict`."""
        core = self._begin(self._core.now)
        run_id = str(record["id"])
        if run_id in core.state.runs:
            raise Conflict(f"run {run_id} is in memory already")
        core.state.plan(record["digest"])
        core.emit(ev.RunRestored(run_id=run_id, record=dict(record)))
        return self._decide()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> Core:
        core = self._core
        core.now = now
        core.events, core.commands = [], []
        return core

    def _decide(self) -> Decision:
        """Follow up until nothing more is due, and hand over what was decided."""
        core = self._core
        touched, children, scheduler = core.state.touched, core.children_ended, core.scheduler
        while True:
            while touched:
                run, index = touched.popleft()
                consider(core, run, index)
            if children:
                child_ended(core, children.popleft())
                continue
            ready = scheduler.take()
            if ready is None:
                break
            start(core, ready)
        return Decision(events=core.events, commands=core.commands)


def _error_of(outcome: Outcome) -> Mapping[str, Any]:
    if outcome.status == "cancelled":
        # Nobody asked for this: the engine forgets an attempt before it cancels it.
        return error_dict("attempt_lost", "the attempt was stopped from outside")
    if outcome.error is not None:
        return outcome.error
    if outcome.status == "timeout":
        return error_dict("step_timeout", "the attempt ran longer than its timeout")
    return error_dict("step_error", "the attempt failed without an error")
