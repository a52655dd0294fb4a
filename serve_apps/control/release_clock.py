"""Releases by the clock: counts what came in, decides, and moves, each release for itself."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import Fenced
from serve_apps.control import events as e
from serve_apps.control.checks import GOLDEN_BACK_S, GOLDEN_S, MoveChecks
from serve_apps.control.core import Core
from serve_apps.control.decide import Decision
from serve_apps.control.observations import Observations
from serve_apps.control.release import Release, ReleaseState
from serve_apps.control.release_moves import ReleaseMoves
from serve_apps.control.samples import Counts

__all__ = ["ReleaseClock"]

_log = logging.getLogger(__name__)
_PATIENCE_S = 0.5
"""So long a beat waits for the checks of a move. Golden requests may take half a minute: other releases, their guard
rails and the breakers must not wait for them."""
AT_ONCE = ("guard", "breaker")
_RECORD = ""
"""In place of a model's name: promotions that could not be recorded at once."""


@dataclass(frozen=True, slots=True)
class _Due:
    """What a release is to do, and where it stood when that was decided (`release` itself goes on)."""

    release: Release
    step: int
    decision: Decision


class ReleaseClock:
    """`tick` every second; `close` gives up the checks that are under way."""

    def __init__(self, core: Core, *, moves: ReleaseMoves, observations: Observations, checks: MoveChecks):
        self._core = core
        self._moves = moves
        self._seen = observations
        self._checks = checks
        self._moving: dict[str, asyncio.Task[None]] = {}

    async def tick(self) -> None:
        """Look at every release in progress. What is wrong with one keeps no other waiting. Raises `Fenced`."""
        begun = []
        for name in list(self._core.state.active):
            try:
                found = await self._observe(name)
                if found is None:
                    continue
                if found.decision.reason in AT_ONCE:
                    # At once, whatever is being checked meanwhile: the way back depends on nothing that can take time.
                    await self._move(found, found.decision, {})
                elif name not in self._moving:
                    self._moving[name] = task = asyncio.create_task(self._carry_out(found), name=f"release {name}")
                    begun.append(task)
            except Fenced:
                raise
            except Exception:
                _log.exception("the release of %s could not be looked at, and is looked at again", name)
        if self._moves.unrecorded and _RECORD not in self._moving:
            self._moving[_RECORD] = task = asyncio.create_task(
                self._moves.record_promotions(), name="record promotions"
            )
            begun.append(task)
        if begun:
            await asyncio.wait(begun, timeout=_PATIENCE_S)
        self._reap()

    def _reap(self) -> None:
        for name, task in [(name, task) for name, task in self._moving.items() if task.done()]:
            del self._moving[name]
            error = task.exception()
            if isinstance(error, Fenced):
                raise error
            if error is not None:
                _log.error("the release of %s could not be moved, and is looked at again", name, exc_info=error)

    async def close(self) -> None:
        tasks = list(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _observe(self, name: str) -> _Due | None:
        core = self._core
        async with core.lock:
            release = core.state.release_of(name)
            if release is None:
                return None
            mine, theirs = self._seen.take(name, release.candidate), self._seen.take(name, release.stable)
            if not (mine.empty and theirs.empty):
                await core.write(self._observed(release, theirs, mine, None))
            decision = self._moves.decide(release)
            if decision.looks is not None:
                looks = decision.looks.model_dump(mode="json")
                await core.write(self._observed(release, Counts(), Counts(), looks))
            if decision.action == "hold":
                return None
            if release.state is ReleaseState.PAUSED and decision.reason not in AT_ONCE:
                return None  # in a pause only these act
            return _Due(release, release.step, decision)

    def _observed(self, release: Release, theirs: Counts, mine: Counts, looks: dict[str, Any] | None) -> Any:
        return e.ReleaseObserved(
            at=self._core.now(),
            id=release.id,
            model=release.model,
            stable=theirs.model_dump(mode="json"),
            candidate=mine.model_dump(mode="json"),
            looks=looks,
        )

    async def _carry_out(self, due: _Due) -> None:
        """Move as decided, after the checks. They stop no way back: there they are a note."""
        release, decision = due.release, due.decision
        figures: dict[str, Any] = {}
        if decision.action == "roll_back":
            problems = await self._checks.problems(release.model, to=release.stable, timeout_s=GOLDEN_BACK_S)
            if problems:
                figures["stable_check"] = problems
        else:
            problems = await self._checks.problems(
                release.model, frm=release.stable, to=release.candidate, timeout_s=GOLDEN_S
            )
            if problems:
                why = f"the candidate failed its check before the next step: {'; '.join(problems)}"
                decision = replace(decision, action="roll_back", why=why)
        await self._move(due, decision, figures)

    async def _move(self, due: _Due, decision: Decision, figures: dict[str, Any]) -> None:
        """Unless somebody was faster, an operator or a guard rail: the release has to be where it was."""
        async with self._core.lock:
            current = self._core.state.release_of(due.release.model)
            if current is None or current.id != due.release.id or current.step != due.step:
                return
            if current.state is ReleaseState.PAUSED and decision.action != "roll_back":
                return
            latest = self._moves.decide(current)
            if latest.reason in AT_ONCE:  # seen while its next step was checked
                decision = latest
            figures = {**decision.figures, **figures, "reason": decision.reason}
            await self._moves.move(current, decision.action, decision.why, figures, by="")
        await self._moves.record_promotions()
