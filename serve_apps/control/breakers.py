"""The breakers of all model versions and http hosts: feeds reports to them and writes their moves down."""

from __future__ import annotations

from typing import Any

from cluster.config.models import BreakerConfig
from cluster.errors import InvalidInput
from serve_apps.control import events as e
from serve_apps.control.breaker import Breaker, BreakerMove, BreakerSnapshot, BreakerState, Observation, may_eject
from serve_apps.control.core import Core
from serve_apps.control.payload import Payload
from serve_apps.control.tables import model_config, model_target
from serve_apps.stats import RouterReport

__all__ = ["Breakers"]


class Breakers:
    """Operations `breakers` and `breaker_report` (http hosts, from whoever calls them); `observe` and `tick`."""

    def __init__(self, core: Core):
        self._core = core
        self._breakers: dict[str, Breaker] = {}

    async def observe(self, report: RouterReport) -> None:
        """Count a router's report. Raises `Fenced`."""
        for row in report.versions:
            model = self._core.state.models.get(row.model)
            if model is None or row.version not in model.versions or row.requests <= 0:
                continue
            if not row.errors and model_target(row.model, row.version) not in self._breakers:
                continue  # a version that never failed needs no breaker
            config = model_config(model).breaker
            seen = Observation(
                requests=row.requests,
                errors=row.errors,
                trailing_failures=row.trailing_failures,
                revision=row.revision,
            )
            await self._feed(model_target(row.model, row.version), config, seen, row.model)

    async def report(self, payload: Payload) -> dict[str, Any]:
        """What a caller of an http host saw: `{target: "http:HOST", requests, errors, trailing_failures, revision}`.
        Answers the breaker's state, and the `revision` under which the next calls are to be reported."""
        target = payload.text("target")
        if not target.startswith("http:"):
            raise InvalidInput("breaker_report: `target` must be http:HOST; models are reported by routers")
        seen = Observation(
            requests=int(payload.optional_number("requests") or 0),
            errors=int(payload.optional_number("errors") or 0),
            trailing_failures=int(payload.optional_number("trailing_failures") or 0),
            revision=int(payload.optional_number("revision") or 0),
        )
        await self._feed(target, BreakerConfig(), seen, None)
        return {
            **self._row(target, self._breaker(target, BreakerConfig()).snapshot),
            "revision": self._core.state.revision,
        }

    async def list(self, payload: Payload) -> dict[str, Any]:
        return {"breakers": [self._row(target, item) for target, item in sorted(self._core.state.breakers.items())]}

    @staticmethod
    def _row(target: str, snapshot: BreakerSnapshot) -> dict[str, Any]:
        return {"target": target, **snapshot.model_dump(mode="json")}

    async def tick(self) -> None:
        """Moves that are due by time. Raises `Fenced`."""
        for target, snapshot in list(self._core.state.breakers.items()):
            if snapshot.state is BreakerState.OPEN:
                async with self._core.lock:
                    breaker = self._breaker(target, self._config(target))
                    await self._write(target, breaker, breaker.tick(now=self._core.now()))

    def _config(self, target: str) -> BreakerConfig:
        kind, _, rest = target.partition(":")
        model = self._core.state.models.get(rest.split(":")[0]) if kind == "model" else None
        return model_config(model).breaker if model else BreakerConfig()

    async def _feed(self, target: str, config: BreakerConfig, seen: Observation, model: str | None) -> None:
        breaker = self._breaker(target, config)
        may_open = self._room(model, config) if model else True
        move = breaker.observe(seen, now=self._core.now(), may_open=may_open)
        if move is not None:
            async with self._core.lock:
                await self._write(target, breaker, move)

    async def _write(self, target: str, breaker: Breaker, move: BreakerMove | None) -> None:
        if move is None:
            return
        if self._core.state.breakers.get(target, BreakerSnapshot()) != breaker.snapshot:
            return  # somebody else moved it meanwhile
        snapshot = move.snapshot.model_dump(mode="json")
        await self._core.write(e.BreakerMoved(at=self._core.now(), target=target, why=move.why, snapshot=snapshot))
        breaker.adopt(self._core.state.breakers[target])

    def _breaker(self, target: str, config: BreakerConfig) -> Breaker:
        recorded = self._core.state.breakers.get(target, BreakerSnapshot())
        breaker = self._breakers.get(target)
        if breaker is None:
            breaker = self._breakers[target] = Breaker(config, recorded)
        elif breaker.snapshot != recorded:
            breaker.adopt(recorded)  # the version was started anew, which clears its record
        breaker.config = config
        return breaker

    def _room(self, model: str, config: BreakerConfig) -> bool:
        entry = self._core.state.models[model]
        with_traffic = [version for version, weight in entry.weights.items() if weight > 0]
        out = 0
        for version in with_traffic:
            known = self._core.state.breakers.get(model_target(model, version))
            out += known is not None and known.state is BreakerState.OPEN
        return may_eject(ejected=out, total=len(with_traffic), max_percent=config.max_ejection_percent)
