"""The breakers of all model versions and http hosts: feeds reports to them and writes their moves down.

A report is judged under the core's lock: what another one, an operator or the timer has just moved is known to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.config.models import BreakerConfig
from cluster.errors import NotFound
from serve_apps.control import events as e
from serve_apps.control.breaker import Breaker, BreakerMove, BreakerSnapshot, BreakerState, Observation, may_eject
from serve_apps.control.core import Core
from serve_apps.control.payload import Payload
from serve_apps.control.tables import HOST, host_breaker_config, model_config, model_target
from serve_apps.stats import RouterReport

__all__ = ["Breakers"]

MAX_COUNTED = 10_000


class Breakers:
    """Operations `breakers`, `breaker_reset` and `host_outcomes` (what run stores saw); `observe` and `tick`."""

    def __init__(self, core: Core):
        self._core = core
        self._breakers: dict[str, Breaker] = {}
        self._heard: dict[str, int] = {}

    async def observe(self, report: RouterReport) -> None:
        """Count a router's report. Raises `Fenced`."""
        rows: dict[tuple[str, str], list[Observation]] = {}
        for row in report.versions:
            seen = Observation(
                requests=row.requests,
                errors=row.errors,
                trailing_failures=row.trailing_failures,
                revision=row.revision,
            )
            rows.setdefault((row.model, row.version), []).append(seen)
        async with self._core.lock:
            for (name, version), observed in rows.items():
                model = self._core.state.models.get(name)
                if model is not None and version in model.versions:
                    await self._feed(model_target(name, version), model_config(model).breaker, observed, name)

    async def report(self, payload: Payload) -> dict[str, Any]:
        """What a run store saw of http hosts: `{source, seq, hosts: [{host, revision, requests, errors,
        trailing_failures}]}`. A batch that comes twice counts once; `seq` grows within a `source`.
        """
        source, seq = payload.text("source"), int(payload.number("seq"))
        rows = payload.optional_list("hosts") or []
        if seq <= self._heard.get(source, 0):
            return {"counted": False}
        self._heard[source] = seq
        by_host: dict[str, list[Observation]] = {}
        for row in rows:
            seen = Observation(
                requests=int(row["requests"]),
                errors=int(row["errors"]),
                trailing_failures=int(row["trailing_failures"]),
                revision=int(row["revision"]),
            )
            by_host.setdefault(f"{HOST}{row['host']}", []).append(seen)
        async with self._core.lock:
            config = host_breaker_config(self._core.state)
            for target, observed in by_host.items():
                await self._feed(target, config, observed, None)
            self._forget_quiet()
        return {"counted": True}

    async def reset(self, payload: Payload) -> dict[str, Any]:
        """An operator closes a breaker now: `{target}`. Raises `NotFound` for one that never opened."""
        target = payload.text("target")
        if target not in self._core.state.breakers:
            known = ", ".join(sorted(self._core.state.breakers))
            there = f"there are: {known}" if known else "none has ever opened"
            raise NotFound(f"no breaker {target!r} ({there})")
        async with self._core.lock:
            breaker = self._breaker(target, self._config(target))
            why = f"reset by {payload.by or 'an operator'}"
            await self._write(target, breaker, breaker.reset(why=why, now=self._core.now()))
        return self._row(target, self._core.state.breakers[target])

    def _forget_quiet(self) -> None:
        """Hosts come from rendered URLs: without this, memory would grow with every one that ever failed once."""
        if len(self._breakers) > MAX_COUNTED:
            self._breakers = {target: b for target, b in self._breakers.items() if not b.quiet}

    async def list(self, payload: Payload) -> dict[str, Any]:
        return {"breakers": [self._row(target, item) for target, item in sorted(self._core.state.breakers.items())]}

    def not_closed(self) -> dict[str, Any]:
        """Names of the breakers that hold something back, by state."""
        out: dict[str, Any] = {}
        for target, snapshot in sorted(self._core.state.breakers.items()):
            if snapshot.state is not BreakerState.CLOSED:
                out.setdefault(snapshot.state.value, []).append(target)
        return out

    @staticmethod
    def _row(target: str, snapshot: BreakerSnapshot) -> dict[str, Any]:
        return {"target": target, **snapshot.model_dump(mode="json")}

    async def tick(self) -> None:
        """Moves that are due by time. Raises `Fenced`."""
        for target, snapshot in list(self._core.state.breakers.items()):
            if snapshot.state is not BreakerState.CLOSED:
                async with self._core.lock:
                    breaker = self._breaker(target, self._config(target))
                    await self._write(target, breaker, breaker.tick(now=self._core.now()))

    def _config(self, target: str) -> BreakerConfig:
        kind, _, rest = target.partition(":")
        if kind == "http":
            return host_breaker_config(self._core.state)
        model = self._core.state.models.get(rest.split(":")[0]) if kind == "model" else None
        return model_config(model).breaker if model else BreakerConfig()

    async def _feed(self, target: str, config: BreakerConfig, seen: Sequence[Observation], model: str | None) -> None:
        """The caller holds the lock, as for every move."""
        known = target in self._breakers or target in self._core.state.breakers
        if known or any(row.errors for row in seen):  # what never failed needs no breaker
            breaker = self._breaker(target, config)
            move = breaker.observe(*seen, now=self._core.now(), may_open=self._room(model, config))
            await self._write(target, breaker, move)

    async def _write(self, target: str, breaker: Breaker, move: BreakerMove | None) -> None:
        if move is None:
            return
        snapshot = move.snapshot.model_dump(mode="json")
        await self._core.write(e.BreakerMoved(at=self._core.now(), target=target, why=move.why, snapshot=snapshot))
        breaker.adopt(self._core.state.breakers[target])

    def _breaker(self, target: str, config: BreakerConfig) -> Breaker:
        recorded = self._core.state.breakers.get(target, BreakerSnapshot())
        kind, _, rest = target.partition(":")
        name, _, version = rest.partition(":")
        since = self._core.state.serving_since(name, version) if kind == "model" else 0
        breaker = self._breakers.get(target)
        if breaker is None or breaker.serving_since != since:
            # Started anew: failures that were too few to open it are not the new instance's either.
            breaker = self._breakers[target] = Breaker(config, recorded, serving_since=since)
        elif breaker.snapshot != recorded:
            breaker.adopt(recorded)
        breaker.config = config
        return breaker

    def _room(self, model: str | None, config: BreakerConfig) -> bool:
        """Whether one more version of `model` may be ejected; always for an http host (None)."""
        if model is None:
            return True
        entry = self._core.state.models.get(model)
        if entry is None:
            return False
        with_traffic = [version for version, weight in entry.weights.items() if weight > 0]
        out = 0
        for version in with_traffic:
            known = self._core.state.breakers.get(model_target(model, version))
            out += known is not None and known.state is BreakerState.OPEN
        return may_eject(ejected=out, total=len(with_traffic), max_percent=config.max_ejection_percent)
