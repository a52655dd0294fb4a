"""Wakes the engine when its next timer is due: one timer of the event loop, set anew whenever that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.clock import Clock

__all__ = ["Alarm"]

_LONGEST_S = 60.0
"""So late at most is a timer when the clock was put forward or the machine slept: the loop's own time knows neither."""


class Alarm:
    """Calls `ring` when the time that was set has come, or earlier: then it is to be set again. `stop` is for good."""

    def __init__(self, *, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = float("inf")
        self._stopped = False

    def set(self, due: float | None) -> None:
        """Ring at `due` (seconds since the epoch) in place of when it would have rung; None: leave it as it is."""
        if due is None or self._stopped or due == self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = due
        delay = min(max(0.001, due - self._clock.now()), _LONGEST_S)
        self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def stop(self) -> None:
        """Ring no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        self._timer, self._at = None, float("inf")
        self._ring()
