"""Warms hosts that are scaled to zero when they will be needed: as the learned patterns say (`prefetch`), or as run
stores say of runs that have just begun."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from cluster.errors import HeadraceError
from serve_apps.control import events as e
from serve_apps.control.core import Core
from serve_apps.control.golden import to_request
from serve_apps.control.observations import Observations
from serve_apps.control.payload import Payload
from serve_apps.control.prefetch import PrefetchRule
from serve_apps.control.state import ModelState
from serve_apps.control.supervisor import Supervisor
from serve_apps.control.tables import model_config

__all__ = ["Prefetching"]

_log = logging.getLogger(__name__)
_LEARN_EVERY_S = 300.0
_LOOK_EVERY_S = 15.0
_WARM_AGAIN_S = 120.0
_WARM_TIMEOUT_S = 600.0


class Prefetching:
    """Operations `forecast` and `models_wanted`; `tick` learns every five minutes, and warms every 15 seconds and at
    each step of a run."""

    def __init__(
        self, core: Core, observations: Observations, supervisor: Supervisor, *, rule: PrefetchRule | None = None
    ):
        self._core = core
        self._seen = observations
        self._supervisor = supervisor
        self._rule = rule or PrefetchRule()
        self._learned_at = core.now()
        self._looked_at = core.now()
        self._steps_seen = 0
        self._warmed: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def tick(self) -> None:
        """Raises `Fenced`."""
        now = self._core.now()
        if now - self._learned_at >= _LEARN_EVERY_S:
            self._learned_at = now
            arrivals, follows = self._seen.take_patterns()
            arrivals = {model: times for model, times in arrivals.items() if model in self._core.state.models}
            if arrivals or follows:
                async with self._core.lock:
                    await self._core.write(e.ArrivalsLearned(at=now, arrivals=arrivals, follows=follows))
        # A step of a run says what comes next: its model gets the whole time until then to start in.
        if now - self._looked_at >= _LOOK_EVERY_S or self._seen.steps_of_runs != self._steps_seen:
            self._looked_at, self._steps_seen = now, self._seen.steps_of_runs
            for forecast in self._needed():
                why = f"{forecast.why} ({100 * forecast.probability:.0f} %)"
                self._start(forecast.model, self._cold()[forecast.model], why)

    async def wanted(self, payload: Payload) -> dict[str, Any]:
        """A run store says that runs which have just begun will call `models` first: those that sleep are warmed."""
        cold = self._cold()
        names = [name for name in payload.optional_list("models") or [] if name in cold]
        return {
            "warming": [name for name in names if self._start(name, cold[name], "a run that has begun will call it")]
        }

    def _start(self, model: str, app: str, why: str) -> bool:
        """Begin to warm, unless that was done just now."""
        now = self._core.now()
        if now - self._warmed.get(app, -_WARM_AGAIN_S) < _WARM_AGAIN_S:
            return False
        self._warmed[app] = now
        _log.info("warming %s: %s", app, why)
        task = asyncio.create_task(self._warm(model, app), name=f"warm {app}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def forecast(self, payload: Payload) -> dict[str, Any]:
        """Which cold models are expected to be needed within the lead time, and why."""
        rows = [{"model": f.model, "probability": round(f.probability, 3), "why": f.why} for f in self._needed()]
        return {"cold": sorted(self._cold()), "needed": rows, "lead_s": self._rule.lead_s}

    def _needed(self) -> list[Any]:
        found = []
        for name in sorted(self._cold()):
            model = self._core.state.models[name]
            autoscaling = model_config(model).versions[_main(model) or ""].autoscaling
            rule = self._rule.model_copy(update={"hold_s": autoscaling.idle_s}) if autoscaling else self._rule
            found += self._core.state.patterns.needed(
                [name], now=self._core.now(), recent=self._seen.called_in_runs, rule=rule
            )
        return found

    def _cold(self) -> dict[str, str]:
        """Models whose main version is scaled to zero right now -> its application."""
        cold = {}
        for name, model in self._core.state.models.items():
            version = _main(model)
            known = model.versions.get(version or "")
            if version is None or known is None or known.serving is None:
                continue
            autoscaling = model_config(model).versions[version].autoscaling
            status = self._supervisor.last.get(known.serving.app)
            if autoscaling is not None and autoscaling.min_replicas == 0 and status is not None and not status.running:
                cold[name] = known.serving.app
        return cold

    async def _warm(self, name: str, app: str) -> None:
        """A request makes Serve start a replica; its answer does not matter."""
        model = self._core.state.models.get(name)
        version = _main(model) if model else None
        if model is None or version is None:
            return
        config = model_config(model).versions[version]
        examples = [*({"inputs": item} for item in config.warmup), *config.golden]
        deadline = self._core.now() + _WARM_TIMEOUT_S
        requests = []
        if examples and isinstance(examples[0].get("inputs"), dict):
            requests = [to_request(examples[0], identifier=f"warm-{app}", deadline_s=deadline)]
        try:
            await self._core.deployer.infer(app, requests, timeout_s=_WARM_TIMEOUT_S)
        except HeadraceError as error:
            _log.info("warming %s: %s", app, error)


def _main(model: ModelState) -> str | None:
    """The version with the most traffic."""
    weighted = [(weight, version) for version, weight in model.weights.items() if weight > 0]
    return max(weighted)[1] if weighted else None
