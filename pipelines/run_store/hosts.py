"""The http hosts that steps call: what the control plane last said of their breakers, and what was seen of them, to be
told to it. Pure.

The control plane counts over all shards and decides; this shard obeys the newest word, also when it was spoken before
a restart and nobody answers now. An outcome counts under the table's revision that was known when its call began, so
that one from before an opening says nothing about the host as it is since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.engine.render import host_of
from pipelines.executor.port import Attempt, Outcome

__all__ = ["HostOutcomes", "HostStates", "SaidOfHost"]

MAX_ROWS = 10_000
_NOT_THE_HOSTS_FAULT = frozenset({"http_refused", "cancelled", "invalid_input", "forbidden", "too_large"})


class SaidOfHost(Protocol):
    """One entry of the control plane's table (`serve_apps.table.HostEntry`): a breaker that is not closed."""

    @property
    def state(self) -> str: ...
    @property
    def open_until(self) -> float | None: ...
    @property
    def since(self) -> int: ...
    @property
    def probes(self) -> int: ...


class HostStates:
    """The newest word on every host whose breaker is not closed."""

    def __init__(self) -> None:
        self.revision = 0
        """Of the newest table heard of: calls that begin now count under it."""
        self._hosts: dict[str, dict[str, Any]] = {}

    def changes(
        self, revision: int, said: Mapping[str, SaidOfHost], *, shards: int
    ) -> list[tuple[str, dict[str, Any] | None]]:
        """Host and state (None: closed) where the table says something else than is known; `set` takes it over.

        The probes of a half-open host are shared out among the shards; each may make at least one.
        """
        self.revision = max(self.revision, revision)
        now: dict[str, dict[str, Any]] = {
            host: {
                "state": entry.state,
                "open_until": entry.open_until,
                "since": entry.since,
                "probes": max(1, entry.probes // shards),
            }
            for host, entry in said.items()
        }
        changed: list[tuple[str, dict[str, Any] | None]] = [
            (host, state) for host, state in now.items() if self._hosts.get(host) != state
        ]
        return changed + [(host, None) for host in self._hosts if host not in now]

    def set(self, host: str, state: Mapping[str, Any] | None) -> None:
        """Take over one change, live or from the log. Logs of before the control plane counted hosts held only those
        that were open, without `state`."""
        if state is None:
            self._hosts.pop(host, None)
            return
        self._hosts[host] = {"state": "open", "since": 0, "probes": 1, **state}
        self.revision = max(self.revision, int(self._hosts[host]["since"]))

    def shown(self) -> dict[str, dict[str, Any]]:
        """Hosts that are not closed: `{host: {state, open_until, …}}`."""
        return dict(self._hosts)

    def to_state(self) -> dict[str, Any]:
        """JSON-like state for a snapshot."""
        return dict(self._hosts)

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take a snapshot's state."""
        self._hosts = {}
        for host, state in states.items():
            self.set(host, state)


@dataclass(slots=True)
class _Row:
    requests: int = 0
    errors: int = 0
    trailing_failures: int = 0


class HostOutcomes:
    """Counts per host until they are told. `source` names this life of the shard; `seq` lets the control plane take a
    batch that was sent twice, because its answer was lost, for one."""

    def __init__(self) -> None:
        self.source = ""
        self.urgent = False
        """Whether something failed: the sooner a breaker opens, the fewer retries are spent on a dead host."""
        self._rows: dict[tuple[str, int], _Row] = {}
        self._seq = 0
        self._sent: dict[str, Any] | None = None
        self._begun_under: dict[int, int] = {}
        """By the fence of each call that is under way."""

    def __bool__(self) -> bool:
        return bool(self._rows) or self._sent is not None

    def began(self, attempt: Attempt, *, revision: int) -> None:
        """An http_request attempt begins while the newest table is of this revision."""
        self._begun_under[attempt.fence] = revision

    def ended(self, attempt: Attempt, outcome: Outcome) -> bool:
        """It has ended; whether that says something about its host."""
        host = host_of(str(attempt.request.get("url") or ""))
        revision = self._begun_under.pop(attempt.fence, 0)
        if not host or outcome.status == "cancelled":
            return False
        error = outcome.error or {}
        status = (error.get("details") or {}).get("status")
        ok = outcome.status == "success" or error.get("code") in _NOT_THE_HOSTS_FAULT or status == 429
        self.add(host, ok=ok, revision=revision)
        return True

    def add(self, host: str, *, ok: bool, revision: int) -> None:
        """A call that began under `revision` ended."""
        if (host, revision) not in self._rows and len(self._rows) >= MAX_ROWS:
            self._rows.pop(next(iter(self._rows)))
        row = self._rows.setdefault((host, revision), _Row())
        row.requests += 1
        row.errors += not ok
        row.trailing_failures = 0 if ok else row.trailing_failures + 1
        self.urgent = self.urgent or not ok

    def batch(self) -> dict[str, Any] | None:
        """What to tell now: the batch that was not answered, else all that was counted since; None: nothing."""
        if self._sent is None and self._rows:
            self._seq += 1
            rows = [
                {
                    "host": host,
                    "revision": revision,
                    "requests": row.requests,
                    "errors": row.errors,
                    "trailing_failures": row.trailing_failures,
                }
                for (host, revision), row in self._rows.items()
            ]
            self._rows.clear()
            self.urgent = False
            self._sent = {"source": self.source, "seq": self._seq, "hosts": rows}
        return self._sent

    def told(self) -> None:
        """The batch has arrived."""
        self._sent = None
