"""Circuit breakers of the http hosts that steps call, in Envoy's terms. Pure: time comes with each call.

    closed ──trip──▶ open ──time──▶ half_open ──enough successes──▶ closed
                      ▲                 │
                      └─────failure─────┘

Openings and closings are logged by the run store, so a restart finds an open breaker open; counts of single failures
start anew. A success only counts when its attempt began after the breaker opened: a late one from before says nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config.models import BreakerConfig

__all__ = ["BreakerState", "HostBreaker", "HostBreakers"]

BreakerState = Literal["closed", "open", "half_open"]

MAX_EJECTION_S = 300.0
MAX_HOSTS = 10_000


@dataclass(slots=True)
class HostBreaker:
    """One host. A closed one without failures in its window is not kept."""

    state: BreakerState = "closed"
    streak: int = 0
    opened_at: float = 0.0
    open_until: float = 0.0
    ejections: int = 0
    passed: int = 0
    window: deque[tuple[float, bool]] = field(default_factory=deque)


class HostBreakers:
    """All hosts of one shard."""

    def __init__(self, *, config: BreakerConfig | None = None) -> None:
        self._config = config or BreakerConfig()
        self._hosts: dict[str, HostBreaker] = {}

    def tick(self, now: float) -> list[str]:
        """Open hosts whose time is over: they are half open from now on, and `probes` calls may try them."""
        due = [host for host, b in self._hosts.items() if b.state == "open" and b.open_until <= now]
        for host in due:
            self._hosts[host].state = "half_open"
            self._hosts[host].passed = 0
        return due

    def next_due(self) -> float | None:
        """When `tick` has something to do; None while no host is open."""
        return min((b.open_until for b in self._hosts.values() if b.state == "open"), default=None)

    @property
    def probes(self) -> int:
        """Calls that may try a half-open host."""
        return self._config.half_open_requests

    def result(self, host: str, *, ok: bool, started_at: float, at: float) -> BreakerState | None:
        """A call ended: the state that the host's breaker is in now, if that changed by it."""
        config = self._config
        breaker = self._hosts.get(host)
        if breaker is None:
            if ok or not config.enabled:
                return None
            if len(self._hosts) >= MAX_HOSTS:
                self._hosts.pop(next(iter(self._hosts)))
            breaker = self._hosts[host] = HostBreaker()
        if breaker.state != "closed":
            if started_at < breaker.opened_at or breaker.state == "open":
                # Begun before it opened: says nothing about the host as it is now.
                return None
            if not ok:
                self._open(breaker, at)
                return "open"
            breaker.passed += 1
            if breaker.passed < config.half_open_requests:
                return None
            del self._hosts[host]
            return "closed"
        breaker.streak = 0 if ok else breaker.streak + 1
        breaker.window.append((at, ok))
        while breaker.window and breaker.window[0][0] < at - config.interval_s:
            breaker.window.popleft()
        failures = sum(1 for _, good in breaker.window if not good)
        many = len(breaker.window) >= config.min_requests and failures / len(breaker.window) >= config.failure_rate
        if not ok and (breaker.streak >= config.consecutive_failures or many):
            self._open(breaker, at)
            return "open"
        if not failures:
            del self._hosts[host]
        return None

    def shown(self) -> dict[str, dict[str, Any]]:
        """Hosts that are not closed: `{host: {state, open_until}}`."""
        return {
            host: {"state": breaker.state, "open_until": breaker.open_until}
            for host, breaker in self._hosts.items()
            if breaker.state != "closed"
        }

    def state_of(self, host: str) -> dict[str, Any] | None:
        """What a restart must know of a host; None for a closed breaker."""
        breaker = self._hosts.get(host)
        if breaker is None or breaker.state == "closed":
            return None
        return {"opened_at": breaker.opened_at, "open_until": breaker.open_until, "ejections": breaker.ejections}

    def set(self, host: str, state: Mapping[str, Any] | None) -> None:
        """The inverse of `state_of`."""
        if state is None:
            self._hosts.pop(host, None)
            return
        self._hosts[host] = HostBreaker(
            state="open",
            opened_at=float(state["opened_at"]),
            open_until=float(state["open_until"]),
            ejections=int(state["ejections"]),
        )

    def to_state(self) -> dict[str, Any]:
        """JSON-like state for a snapshot: the breakers that are not closed."""
        states = {host: self.state_of(host) for host in self._hosts}
        return {host: state for host, state in states.items() if state is not None}

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take a snapshot's state."""
        self._hosts = {}
        for host, state in states.items():
            self.set(host, state)

    def _open(self, breaker: HostBreaker, at: float) -> None:
        breaker.ejections += 1
        longest = max(MAX_EJECTION_S, self._config.base_ejection_s)
        breaker.state = "open"
        breaker.opened_at = at
        breaker.open_until = at + min(self._config.base_ejection_s * breaker.ejections, longest)
        breaker.streak, breaker.passed = 0, 0
        breaker.window.clear()
