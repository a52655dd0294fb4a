"""Releases as operators drive them: start, watch, move, end. By the clock they are driven in `release_clock`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from cluster.config.models import ReleaseConfig
from cluster.errors import Conflict, InvalidInput, NotFound
from serve_apps.control import events as e
from serve_apps.control.apply import begun
from serve_apps.control.checks import GOLDEN_S, MoveChecks
from serve_apps.control.core import Core
from serve_apps.control.decide import GUARDS
from serve_apps.control.observations import Observations
from serve_apps.control.payload import Payload
from serve_apps.control.plan import semver
from serve_apps.control.release import Release, ReleasePlan, ReleaseState, plan_release
from serve_apps.control.release_moves import ReleaseMoves
from serve_apps.control.samples import Counts
from serve_apps.control.state import ModelState
from serve_apps.control.tables import model_config

__all__ = ["Releases"]

_ENDED = {ReleaseState.PROMOTED: 100.0, ReleaseState.ROLLED_BACK: 0.0}
"""The candidate's share once it is all over."""


class Releases:
    """Operations `release_plan|start|status|show|promote|pause|resume|rollback|history` and `promotions`."""

    def __init__(self, core: Core, *, moves: ReleaseMoves, observations: Observations, checks: MoveChecks):
        self._core = core
        self._checks = checks
        self._moves = moves
        self._seen = observations

    async def start(self, payload: Payload) -> dict[str, Any]:
        """Move the first share of a model's traffic to `candidate`, after its signature and golden requests."""
        name, candidate, core = payload.text("model"), payload.text("candidate"), self._core
        plan = self._plan(core.model(name), payload)
        stable = self._startable(name, candidate)
        if not payload.flag("force"):
            await self._checks.require(name, frm=stable, to=candidate, timeout_s=GOLDEN_S)
        async with core.lock:
            stable = self._startable(name, candidate)
            started = self._started(f"rel-{core.ids.ulid()}", name, stable, candidate, plan, payload.by)
            self._seen.forget(name, (stable, candidate))
            await core.write(started)
            return self._view(core.state.releases[started.id])

    async def plan(self, payload: Payload) -> dict[str, Any]:
        """What `start` would begin, and every reason why it would be refused (`problems`). Nothing moves."""
        name, candidate = payload.text("model"), payload.text("candidate")
        plan = self._plan(self._core.model(name), payload)
        stable = self._startable(name, candidate)
        problems = await self._checks.problems(name, frm=stable, to=candidate, timeout_s=GOLDEN_S)
        view = self._view(begun(self._started("", name, stable, candidate, plan, payload.by)))
        return {**view, "state": "planned", "decision": {}, "history": [], "problems": problems}

    def _started(
        self, identifier: str, name: str, stable: str, candidate: str, plan: ReleasePlan, by: str
    ) -> e.ReleaseStarted:
        return e.ReleaseStarted(
            at=self._core.now(),
            id=identifier,
            model=name,
            stable=stable,
            candidate=candidate,
            plan=plan.model_dump(mode="json"),
            weights_before=dict(self._core.state.models[name].weights),
            by=by,
        )

    def _plan(self, model: ModelState, payload: Payload) -> ReleasePlan:
        given: dict[str, Any] = {}
        for key in ("strategy", "steps", "step_duration"):
            value = payload.any(key)
            if value is not None:
                given[key] = value
        base = model_config(model).release.model_dump(mode="json")
        analysis = payload.optional_mapping("analysis")
        if unknown := sorted(analysis.keys() - base["analysis"].keys()):
            raise InvalidInput(f"release: no analysis {', '.join(unknown)}: {', '.join(base['analysis'])}")
        given["analysis"] = {**base["analysis"], **analysis}
        # Naming one guard rail must not take the others away; null takes one away.
        guard = {**base["guard"], **payload.optional_mapping("guard")}
        given["guard"] = {key: limit for key, limit in guard.items() if limit is not None}
        try:
            config = ReleaseConfig.model_validate({**base, **given})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise InvalidInput(": ".join(part for part in ("release", place, said) if part)) from None
        steps = list(config.steps)
        if not steps or any(not 0 < step <= 100 for step in steps) or steps != sorted(set(steps)):
            raise InvalidInput("release: steps must grow, each more than 0 and at most 100")
        if unknown := sorted(set(config.guard) - set(GUARDS)):
            raise InvalidInput(f"release: no guard {', '.join(unknown)}: {', '.join(GUARDS)}")
        return plan_release(config)

    def _startable(self, name: str, candidate: str) -> str:
        """The stable version, if a release to `candidate` may start now."""
        model = self._core.model(name)
        running = self._core.state.release_of(name)
        if running is not None:
            raise Conflict(f"{name} has the release {running.id} in progress: promote it or roll it back first")
        known = model.versions.get(candidate)
        if known is None:
            there = ", ".join(sorted(model.versions, key=semver))
            raise NotFound(f"{name} has no version {candidate!r} (there are: {there}): deploy it first")
        if known.serving is None:
            raise Conflict(f"{name} {candidate} is not ready: a release needs it loaded")
        with_traffic = [version for version, weight in model.weights.items() if weight > 0]
        if with_traffic == [candidate]:
            raise Conflict(f"{name} {candidate} has all the traffic already")
        others = [version for version in with_traffic if version != candidate]
        if len(others) != 1:
            raise Conflict(
                f"{name} has traffic on {', '.join(others) or 'no version'}: a release compares with one stable "
                "version, so give all of it to one first (`headrace traffic`)"
            )
        if model.versions[others[0]].serving is None:
            raise Conflict(f"{name} {others[0]}, the stable version, is not ready")
        if (ejected := self._checks.ejected(name, candidate)) is not None:
            # Not even by force: the release would roll back at once.
            raise Conflict(
                f"{name} {candidate} may not be released: {ejected}. Mend it and deploy it anew, which clears its "
                "record, wait until the breaker is half-open, or close it (`headrace breakers reset`)"
            )
        return others[0]

    async def show(self, payload: Payload) -> dict[str, Any]:
        """One release by its id, ended or not."""
        release = self._core.state.releases.get(payload.text("id"))
        if release is None:
            raise NotFound(f"no release {payload.text('id')!r}: `headrace release history` lists them")
        return self._view(release)

    async def status(self, payload: Payload) -> dict[str, Any]:
        """The release in progress, or the model's last one."""
        return self._view(self._of(payload, running=False))

    async def history(self, payload: Payload) -> dict[str, Any]:
        name = payload.optional_text("model")
        found = [item for item in self._core.state.releases.values() if name in (None, item.model)]
        return {"releases": [self._view(item) for item in reversed(found)]}

    async def pause(self, payload: Payload) -> dict[str, Any]:
        return await self._by_hand(payload, "pause", {ReleaseState.RUNNING})

    async def resume(self, payload: Payload) -> dict[str, Any]:
        return await self._by_hand(payload, "resume", {ReleaseState.PAUSED})

    async def promote(self, payload: Payload) -> dict[str, Any]:
        """End the release in favour of the candidate, whatever the figures say; who did it is in the history."""
        release = self._of(payload, running=True)
        if not payload.flag("force"):
            await self._checks.require(release.model, frm=release.stable, to=release.candidate, timeout_s=GOLDEN_S)
        return await self._by_hand(payload, "promote", {ReleaseState.RUNNING, ReleaseState.PAUSED}, checked=release)

    async def rollback(self, payload: Payload) -> dict[str, Any]:
        release = self._of(payload, running=True)
        if not payload.flag("force"):
            await self._checks.require(release.model, frm=release.stable, to=release.stable, timeout_s=GOLDEN_S)
        return await self._by_hand(payload, "roll_back", {ReleaseState.RUNNING, ReleaseState.PAUSED}, checked=release)

    def _of(self, payload: Payload, *, running: bool) -> Release:
        name, state = payload.text("model"), self._core.state
        self._core.model(name)
        release = state.release_of(name)
        if release is None and not running:
            release = next((item for item in reversed(state.releases.values()) if item.model == name), None)
        if release is None:
            raise NotFound(f"{name} has no release{' in progress' if running else ''}")
        meant = payload.optional_text("id")
        if meant is not None and meant != release.id:
            raise Conflict(f"the release of {name} is {release.id} now, not {meant}")
        return release

    async def _by_hand(
        self, payload: Payload, move: Any, allowed: set[ReleaseState], *, checked: Release | None = None
    ) -> dict[str, Any]:
        """`checked`: the release whose checks have passed; another one may have begun meanwhile."""
        async with self._core.lock:
            release = self._of(payload, running=True)
            if checked is not None and release.id != checked.id:
                raise Conflict(f"the release {checked.id} of {release.model} has ended; {release.id} runs now")
            if release.state not in allowed:
                raise Conflict(f"the release of {release.model} is {release.state.value}")
            if move == "promote" and not payload.flag("force"):
                self._checks.require_admitted(release.model, release.candidate)
            why = payload.optional_text("reason") or "by hand"
            await self._moves.move(release, move, why, {}, by=payload.by or "operator")
            view = self._view(release)
        await self._moves.record_promotions()
        return view

    async def record_promotion(self, payload: Payload) -> dict[str, Any]:
        """Record a promotion without a release: a first version has no stable one to be compared with."""
        name, version, reason = payload.text("model"), payload.text("version"), payload.optional_text("reason")
        self._ready(name, version)
        if not reason:
            raise InvalidInput("a promotion without a release needs a `reason`: it is recorded")
        await self._checks.require(name, frm=version, to=version, timeout_s=GOLDEN_S)
        async with self._core.lock:
            model = self._ready(name, version)
            await self._core.write(self._moves.promotion(model, name, version, override=f"{reason} (by {payload.by})"))
        await self._moves.record_promotions()
        return self._promotion_rows(f"{name} {version}")[0]

    def _ready(self, name: str, version: str) -> ModelState:
        """The model, if this version of it serves. Looked at again after every check: those take time."""
        model = self._core.model(name)
        known = model.versions.get(version)
        if known is None or known.serving is None:
            raise Conflict(f"{name} {version} is not ready here, so nothing can be said about it")
        return model

    async def promotions(self, payload: Payload) -> dict[str, Any]:
        return {"promotions": self._promotion_rows(None)}

    def _promotion_rows(self, only: str | None) -> list[dict[str, Any]]:
        found = self._core.state.promotions
        return [item.model_dump() for key, item in found.items() if only in (None, key)]

    def _view(self, release: Release) -> dict[str, Any]:
        decision = None if release.state.ended else self._moves.decide(release)
        return {
            "id": release.id,
            "model": release.model,
            "stable": release.stable,
            "candidate": release.candidate,
            "state": release.state.value,
            "strategy": release.plan.strategy,
            "step": release.step,
            "steps": list(release.plan.steps),
            "percent": _ENDED.get(release.state, release.percent),
            "step_duration": release.plan.step_duration_s,
            "analysis": release.plan.analysis.model_dump(mode="json"),
            "guard": dict(release.plan.guard),
            "started_at": release.started_at,
            "step_started_at": release.step_started_at,
            "ended_at": release.ended_at,
            "by": release.by,
            "samples": {
                "stable": _totals(release.strata_stable),
                "candidate": _totals(release.strata_candidate),
            },
            "decision": {}
            if decision is None
            else {
                "action": decision.action,
                "reason": decision.reason,
                "why": decision.why,
                "figures": decision.figures,
            },
            "history": list(release.history),
        }


def _totals(strata: list[Counts]) -> dict[str, Any]:
    total = Counts()
    for counts in strata:
        total.add(counts)
    return {
        "requests": total.requests,
        "errors": total.errors,
        "p95_ms": total.quantile_ms(0.95),
        "feedback": total.feedback_n,
        "feedback_mean": round(total.feedback_sum / total.feedback_n, 4) if total.feedback_n else None,
    }
