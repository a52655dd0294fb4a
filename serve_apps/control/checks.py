"""What must hold before traffic moves to a version: its signature fits its new callers, its golden requests pass."""

from __future__ import annotations

import asyncio

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
        ejected = self.ejected(name, to)
        problems = [ejected] if ejected else await self.problems(name, frm=frm, to=to, timeout_s=timeout_s)
        if problems:
            raise Conflict(
                f"traffic may not move to {name} {to}: {'; '.join(problems)}", details={"problems": problems}
            )

    def ejected(self, name: str, version: str) -> str | None:
        """That the circuit breaker lets nothing through to the version now; None when it does."""
        breaker = self._core.state.breakers.get(model_target(name, version))
        if breaker is None or breaker.state is not BreakerState.OPEN:
            return None
        left = max(0.0, (breaker.open_until or self._core.now()) - self._core.now())
        return f"its circuit breaker is open for {left:.0f} s more, so no request would reach it"

    async def problems(self, name: str, *, to: str, timeout_s: float, frm: str | None = None) -> list[str]:
        """The reasons; [] when it may. Callers of a version rely on that version's signature."""
        model = self._core.model(name)
        config = model_config(model)
        known = model.versions.get(to)
        if known is None or known.serving is None:
            return [f"{to} is not ready"]
        reasons = []
        if frm is not None and frm in config.versions:
            reasons = breaking(config.signature_of(frm), config.signature_of(to))
        golden = config.versions[to].golden
        if golden:
            limit = min(timeout_s, config.versions[to].timeout_s)
            try:
                async with asyncio.timeout(timeout_s):
                    reasons += await run_golden(
                        self._core.deployer, known.serving.app, golden, now=self._core.now(), timeout_s=limit
                    )
            except TimeoutError:
                reasons.append(f"its golden requests were not answered within {timeout_s:g} s")
        return reasons
