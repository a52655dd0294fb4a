"""What a router tells the control plane about the answers it saw: shapes and their JSON form. No Ray, no clock.

A router keeps one `VersionStats` per (model, version, revision) and sends them about once a second with
`report(router_id, RouterReport(...).to_wire())`, then starts new ones. Counts are of *finished* requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MAX_ANSWERS", "MAX_SAMPLES", "Answer", "RouterReport", "VersionStats"]

MAX_SAMPLES = 256
"""Latencies in one row at most; a router that sees more keeps a uniform sample (reservoir)."""
MAX_ANSWERS = 2048
"""Answers named in one report at most (for feedback by request id); newer ones win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStats:
    """One model version since the last report.

    `revision` is that of the table under which the requests were *sent*: the breaker ignores successes of requests
    that were sent before it opened. `errors` are failures of the version (5xx, timeouts, unreachable), never caller
    mistakes or cancellations. `trailing_failures`: failures since the last success of this row, in order of
    completion (all of them when nothing succeeded). `latencies_ms`: successful answers, seen from the router.
    `half_open`: the requests were let through by a half-open breaker.
    """

    model: str
    version: str
    revision: int = 0
    requests: int = 0
    errors: int = 0
    trailing_failures: int = 0
    latencies_ms: Sequence[float] = ()
    half_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Who answered a request, so that feedback by request id finds its version. `run`: the workflow run, if any.
    `caller`: the name of the key that asked; None from a router that does not say so yet.
    """

    id: str
    model: str
    version: str
    run: str | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReport:
    """One report. `seq` grows by one per router process, so that a report sent twice is counted once."""

    seq: int
    revision: int = 0
    """The table the router has now."""
    versions: Sequence[VersionStats] = ()
    answers: Sequence[Answer] = ()
    arrivals: Mapping[str, int] | None = None
    """Requests per model as callers addressed it, answered or not (a model scaled to zero has arrivals, no answers)."""

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> RouterReport:
        """Unknown keys are ignored: a router may be newer than the control plane."""
        return cls(
            seq=int(data.get("seq", 0)),
            revision=int(data.get("revision", 0)),
            versions=tuple(VersionStats(**_known(VersionStats, row)) for row in data.get("versions") or ()),
            answers=tuple(Answer(**_known(Answer, row)) for row in data.get("answers") or ()),
            arrivals=dict(data.get("arrivals") or {}),
        )


def _known(cls: type, row: Mapping[str, Any]) -> dict[str, Any]:
    names = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {key: value for key, value in row.items() if key in names}
