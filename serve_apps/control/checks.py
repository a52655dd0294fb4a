"""What must hold before traffic moves to a version: its signature fits its new callers, its golden requests pass."""

from __future__ import annotations

import asyncio

from cluster.config.models import VersionConfig
from cluster.errors import Conflict
from cluster.signature import breaking
from serve_apps.control.breaker import BreakerState
from serve_apps.control.core import Core
from serve_apps.control.golden import run_golden
from serve_apps.control.tables import model_config, model_target

__all__ = ["GOLDEN_BACK_S", "GOLDEN_S", "MoveChecks"]

GOLDEN_S = 30.0
GOLDEN_BACK_S = 3.0
"""A roll-back does not wait long for the stable version's golden requests."""


class MoveChecks:
    """Used by releases and by weights that are set by hand. Holds no lock: golden requests take time."""

    def __init__(self, core: Core):
        self._core = core

    async def require(self, name: str, *, frm: str | None, to: str, timeout_s: float = GOLDEN_S) -> None:
        """Raises `Conflict` with every reason why `to` should not get the callers of `frm`."""
        self.require_admitted(name, to)
        problems = await self.problems(name, frm=frm, to=to, timeout_s=timeout_s)
        if problems:
            raise Conflict(
                f"traffic may not move to {name} {to}: {'; '.join(problems)}", details={"problems": problems}
            )

    def require_admitted(self, name: str, version: str) -> None:
        """Raises `Conflict` for an ejected version. For the moment of the move itself: checks take time."""
        if (ejected := self.ejected(name, version)) is not None:
            raise Conflict(f"traffic may not move to {name} {version}: {ejected}", details={"problems": [ejected]})

    def ejected(self, name: str, version: str) -> str | None:
        """That the circuit breaker lets nothing through to the version now; None when it does."""
        breaker = self._core.state.breakers.get(model_target(name, version))
        if breaker is None or breaker.state is not BreakerState.OPEN:
            return None
        left = max(0.0, (breaker.open_until or self._core.now()) - self._core.now())
        return f"its circuit breaker is open for {left:.0f} s more, so no request would reach it"

    async def problems(self, name: str, *, to: str, timeout_s: float, frm: str | None = None) -> list[str]:
        """The reasons; [] when it may. Callers of a version rely on that version's signature. What was said about an
        instance that was replaced meanwhile says nothing about the new one, so that is asked then."""
        reasons: list[str] = []
        try:
            async with asyncio.timeout(timeout_s):
                while (app := self._app(name, to)) is not None:
                    config = model_config(self._core.model(name))
                    reasons = []
                    if frm is not None and frm in config.versions:
                        reasons = breaking(config.signature_of(frm), config.signature_of(to))
                    reasons += await self._golden(config.versions[to], app, timeout_s)
                    if app == self._app(name, to):
                        return reasons
        except TimeoutError:
            return [*reasons, f"its golden requests were not answered within {timeout_s:g} s"]
        return [f"{to} is not ready"]

    def _app(self, name: str, version: str) -> str | None:
        """What serves the version now. Raises `NotFound` for a model that is not, or no more, there."""
        known = self._core.model(name).versions.get(version)
        return known.serving.app if known is not None and known.serving is not None else None

    async def _golden(self, config: VersionConfig, app: str, timeout_s: float) -> list[str]:
        if not config.golden:
            return []
        limit = min(timeout_s, config.timeout_s)
        return await run_golden(self._core.deployer, app, config.golden, now=self._core.now(), timeout_s=limit)
