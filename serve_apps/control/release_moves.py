"""What operators and the clock share: what the figures say now, a move with its weights, promotions on record."""

from __future__ import annotations

import logging
from typing import Any

from cluster.errors import HeadraceError
from cluster.promotions import PromotionRecord
from cluster.promotions import record_promotion as write_promotion
from cluster.storage.port import Bucket
from serve_apps.control import events as e
from serve_apps.control.breaker import BreakerState
from serve_apps.control.core import Core
from serve_apps.control.decide import Decision, Looks, Progress, Seen, decide
from serve_apps.control.deployments import content_of
from serve_apps.control.observations import Observations
from serve_apps.control.release import Release
from serve_apps.control.state import ModelState
from serve_apps.control.tables import model_target

__all__ = ["ReleaseMoves"]

_log = logging.getLogger(__name__)


class ReleaseMoves:
    """Writes what was decided; decides nothing but by `decide`."""

    def __init__(self, core: Core, *, bucket: Bucket, observations: Observations):
        self._core = core
        self._bucket = bucket
        self._seen = observations
        self._recorded: set[str] = set()

    def decide(self, release: Release) -> Decision:
        now, state = self._core.now(), self._core.state
        breaker = state.breakers.get(model_target(release.model, release.candidate))
        if breaker is not None and breaker.state is BreakerState.OPEN:
            why = f"the circuit breaker of {release.candidate} opened"
            return Decision(action="roll_back", reason="breaker", why=why)
        progress = Progress(
            plan=release.plan,
            step=release.step,
            step_started_at=release.step_started_at,
            looks=Looks.model_validate(release.looks),
        )
        stable, candidate = (
            Seen(strata=strata, recent=self._seen.recent(release.model, version, now))
            for version, strata in (
                (release.stable, release.strata_stable),
                (release.candidate, release.strata_candidate),
            )
        )
        return decide(progress, stable, candidate, now)

    async def move(self, release: Release, move: Any, why: str, figures: dict[str, Any], *, by: str) -> None:
        """Write one transition, with the weights that follow from it. The caller holds the lock."""
        core = self._core
        model = core.state.models[release.model]
        weights: dict[str, float] | None = None
        facts: list[Any] = []
        none = dict.fromkeys(model.weights, 0.0)
        if move == "advance":
            share = release.plan.steps[release.step + 1]
            weights = {**none, release.stable: 100.0 - share, release.candidate: share}
        elif move == "promote":
            weights = {**none, release.candidate: 100.0}
            facts.append(self.promotion(model, release.model, release.candidate, release=release, figures=figures))
        elif move == "roll_back":
            weights = {**none, **{v: w for v, w in release.weights_before.items() if v in model.versions}}
        moved = e.ReleaseMoved(
            at=core.now(),
            id=release.id,
            model=release.model,
            move=move,
            weights=weights,
            why=why,
            figures=figures,
            by=by,
        )
        self._seen.forget(release.model, (release.stable, release.candidate))
        await core.write(moved, *facts)
        _log.info("release %s of %s: %s: %s", release.id, release.model, move, why)

    # ---- evidence for other environments ----

    def promotion(
        self,
        model: ModelState,
        name: str,
        version: str,
        *,
        release: Release | None = None,
        figures: dict[str, Any] | None = None,
        override: str | None = None,
    ) -> Any:
        serving = model.versions[version].serving
        assert serving is not None
        return e.PromotionRecorded(
            at=self._core.now(),
            model=name,
            version=version,
            fingerprint=content_of(model.config, serving, version),
            release=release.id if release else None,
            figures=figures or {},
            override=override,
        )

    @property
    def unrecorded(self) -> list[PromotionRecord]:
        """Promotions that are not in the bucket yet, as far as this process knows."""
        environment = (self._core.state.settings or {}).get("environment", "dev")
        records = [
            PromotionRecord(
                environment=environment,
                model=item.model,
                version=item.version,
                fingerprint=item.fingerprint,
                at=item.at,
                release=item.release,
                figures=item.figures,
            )
            for item in self._core.state.promotions.values()
        ]
        return [record for record in records if record.key not in self._recorded]

    async def record_promotions(self) -> None:
        """Bring promotions into the bucket, where other environments read them. What does not get there now stays
        `unrecorded`: the promotion itself is in the log already, and stands."""
        for record in self.unrecorded:
            try:
                await write_promotion(self._bucket, record)
            except HeadraceError as error:
                _log.warning("the promotion %s could not be recorded, and will be: %s", record.key, error)
            else:
                self._recorded.add(record.key)
