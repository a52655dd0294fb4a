"""The circuit breaker of one model version or one http host, in Envoy's outlier-detection terms. Pure.

    closed ──trip──▶ open ──timer──▶ half_open ──passed──▶ closed
                      ▲                  │
                      └─────failed───────┘

An operator's `reset` closes one that is not closed.
`TRANSITIONS` is the only place that says so; a pair that is not in it raises. What is counted (streak, window) lives in
memory; what a restart must remember (`BreakerSnapshot`) goes into the control plane's log.
Terms and the growth of the ejection time: Envoy, "Outlier detection" (consecutive_5xx, failure percentage,
base_ejection_time multiplied by the number of times the host was ejected, which sinks again while it is healthy).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from cluster.config.models import BreakerConfig

__all__ = [
    "MAX_EJECTION_S",
    "TRANSITIONS",
    "Breaker",
    "BreakerEvent",
    "BreakerMove",
    "BreakerSnapshot",
    "BreakerState",
    "Observation",
    "may_eject",
]

MAX_EJECTION_S = 300.0
"""Envoy's max_ejection_time default: an ejection never lasts longer, however often it happened before."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerEvent(StrEnum):
    TRIP = "trip"
    TIMER = "timer"
    PASSED = "passed"
    FAILED = "failed"
    RESET = "reset"


TRANSITIONS: Mapping[tuple[BreakerState, BreakerEvent], BreakerState] = {
    (BreakerState.CLOSED, BreakerEvent.TRIP): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.TIMER): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, BreakerEvent.PASSED): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, BreakerEvent.FAILED): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.RESET): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, BreakerEvent.RESET): BreakerState.CLOSED,
}


class BreakerSnapshot(BaseModel):
    """The durable part. `since_revision`: results of requests sent under an older revision no longer count."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: BreakerState = BreakerState.CLOSED
    ejections: int = 0
    changed_at: float = 0.0
    open_until: float | None = None
    since_revision: int = 0
    why: str = ""
    """What caused the last move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Finished requests since the last observation (see `serve_apps.stats.VersionStats`)."""

    requests: int
    errors: int
    trailing_failures: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerMove:
    """A transition to write down: the snapshot after it, and the figures that caused it."""

    event: BreakerEvent
    why: str
    snapshot: BreakerSnapshot


@dataclass(slots=True)
class Breaker:
    """One breaker. `observe` and `tick` propose a move; it takes effect with `adopt`, after it is durable."""

    config: BreakerConfig
    snapshot: BreakerSnapshot = field(default_factory=BreakerSnapshot)
    serving_since: int = 0
    """The first revision of the instance that it judges: what is of older ones is not counted."""
    streak: int = 0
    passed: int = 0
    window: deque[tuple[float, int, int]] = field(default_factory=deque)

    def observe(self, *rows: Observation, now: float, may_open: bool = True) -> BreakerMove | None:
        """Count the rows of one report, in their order; the move that follows from all of them together, if any:
        failures of one row that a later row's success ended are no streak. `may_open`: `max_ejection_percent` leaves
        room.
        """
        since = max(self.snapshot.since_revision, self.serving_since)
        counted = [row for row in rows if row.requests > 0 and row.revision >= since]
        if not self.config.enabled or not counted:
            return None
        seen = _together(counted)
        if self.snapshot.state is BreakerState.OPEN:
            return None
        if self.snapshot.state is BreakerState.HALF_OPEN:
            return self._probe(seen, now)
        self.streak = seen.trailing_failures + (self.streak if seen.errors >= seen.requests else 0)
        if self.window and now < self.window[-1][0]:  # the clock was put back: nothing says how old these are
            self.window.clear()
        self.window.append((now, seen.requests, seen.errors))
        while self.window and self.window[0][0] < now - self.config.interval_s:
            self.window.popleft()
        why = self._why()
        return self._move(BreakerEvent.TRIP, why, now) if why and may_open else None

    def tick(self, *, now: float) -> BreakerMove | None:
        """The move that is due by time alone, or because breakers were switched off."""
        if not self.config.enabled:
            return self.reset(why="breakers are switched off", now=now)
        until = self.snapshot.open_until
        if self.snapshot.state is not BreakerState.OPEN or until is None:
            return None
        if now >= until:
            return self._move(BreakerEvent.TIMER, "the ejection time is over", now)
        if now < self.snapshot.changed_at:
            # By as much as it was put back, the ejection would last longer. Probes find out whether it is over.
            return self._move(BreakerEvent.TIMER, "the clock was put back during the ejection", now)
        return None

    def reset(self, *, why: str, now: float) -> BreakerMove | None:
        """Close it whatever was seen; its record of ejections is cleared, too. None: it is closed."""
        if self.snapshot.state is BreakerState.CLOSED:
            return None
        move = self._move(BreakerEvent.RESET, why, now)
        return replace(move, snapshot=move.snapshot.model_copy(update={"ejections": 0}))

    @property
    def quiet(self) -> bool:
        """Closed, and no failure is remembered: it can be forgotten."""
        counted = self.streak or any(errors for _, _, errors in self.window)
        return self.snapshot.state is BreakerState.CLOSED and not counted

    def adopt(self, snapshot: BreakerSnapshot) -> None:
        """The move has happened: counting starts anew."""
        self.snapshot = snapshot
        self.streak = self.passed = 0
        self.window.clear()

    def _probe(self, seen: Observation, now: float) -> BreakerMove | None:
        if seen.errors:
            return self._move(BreakerEvent.FAILED, f"{seen.errors} of {seen.requests} probes failed", now)
        self.passed += seen.requests
        if self.passed < self.config.half_open_requests:
            return None
        return self._move(BreakerEvent.PASSED, f"{self.passed} probes succeeded", now)

    def _why(self) -> str:
        if self.streak >= self.config.consecutive_failures:
            return f"{self.streak} failures in a row"
        requests = sum(row[1] for row in self.window)
        errors = sum(row[2] for row in self.window)
        if requests >= self.config.min_requests and errors / requests >= self.config.failure_rate:
            return f"{errors} of {requests} requests failed within {self.config.interval_s:g} s"
        return ""

    def _move(self, event: BreakerEvent, why: str, now: float) -> BreakerMove:
        before = self.snapshot
        state = TRANSITIONS[before.state, event]
        ejections, until = before.ejections, None
        if state is BreakerState.OPEN:
            if before.state is BreakerState.CLOSED:
                ejections = max(0, ejections - int((now - before.changed_at) / self.config.interval_s))
            ejections += 1
            until = now + min(self.config.base_ejection_s * ejections, max(MAX_EJECTION_S, self.config.base_ejection_s))
        after = BreakerSnapshot(
            state=state,
            ejections=ejections,
            changed_at=now,
            open_until=until,
            since_revision=before.since_revision,
            why=why,
        )
        return BreakerMove(event=event, why=why, snapshot=after)


def _together(rows: Sequence[Observation]) -> Observation:
    """One observation that says the same as these, one after the other."""
    streak = 0
    for row in rows:
        streak = row.trailing_failures + (streak if row.errors >= row.requests else 0)
    return Observation(
        requests=sum(row.requests for row in rows),
        errors=sum(row.errors for row in rows),
        trailing_failures=streak,
        revision=max(row.revision for row in rows),
    )


def may_eject(*, ejected: int, total: int, max_percent: float) -> bool:
    """Whether one more of `total` may be ejected when `ejected` are already (Envoy's max_ejection_percent)."""
    return total > 0 and (ejected + 1) / total * 100 <= max_percent + 1e-9
