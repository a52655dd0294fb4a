"""A run's story as its followers see it: numbered events, made from the engine's facts. Pure.

A line is kept as the fact's own log record, and turned into what followers see when one reads it: most runs have no
follower. Facts with large values are turned at once, since followers do not get those values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from pipelines.engine.codec import from_dict
from pipelines.engine.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    ItemFailed,
    ItemSucceeded,
    IterationSucceeded,
    RunCancelled,
    RunFailed,
    RunResumed,
    RunSubmitted,
    RunSucceeded,
    StepDelayed,
    StepFailed,
    StepParked,
    StepSkipped,
    StepStarted,
    StepSucceeded,
)

__all__ = ["MAX_LINES", "History", "is_public", "public_event"]

MAX_LINES = 4000
"""Of a very long story the older half is dropped; `events` then starts at a later number."""
_KEEP_RECORD = 600
"""Records up to this many bytes are kept as they are."""


class History:
    """Numbered lines from 1 on. `shown` of them are committed: only those may be told."""

    __slots__ = ("_lines", "first", "shown")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.first = 1
        self.shown = 0

    @property
    def last(self) -> int:
        """The number of the newest line, committed or not; 0 for none."""
        return self.first + len(self._lines) - 1

    def add(self, event: Event, record: bytes) -> int:
        """Append a fact that followers learn of (see `is_public`) and return its number."""
        self._lines.append(record if len(record) <= _KEEP_RECORD else line(event))
        if len(self._lines) > MAX_LINES:
            dropped = len(self._lines) // 2
            del self._lines[:dropped]
            self.first += dropped
        return self.last

    def after(self, number: int, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Committed lines with greater numbers as `{id, event, data}`, at most `limit`."""
        start = max(number + 1, self.first)
        end = min(self.shown, start + limit - 1)
        out: list[dict[str, Any]] = []
        for at in range(start, end + 1):
            raw = orjson.loads(self._lines[at - self.first])
            if "e" in raw:
                name, data = public_event(from_dict(raw))
            else:
                name, data = raw["event"], raw["data"]
            out.append({"id": at, "event": name, "data": data})
        return out

    def to_state(self) -> list[Any]:
        """Compact JSON-like state: one text for all lines, so that reading many runs back is cheap."""
        return [self.first, b"\n".join(self._lines).decode()]

    @classmethod
    def from_state(cls, state: list[Any]) -> History:
        """The inverse of `to_state`; everything in it is committed."""
        history = cls()
        history.first = state[0]
        history._lines = state[1].encode().split(b"\n") if state[1] else []
        history.shown = history.last
        return history


def is_public(event: Event) -> bool:
    """Whether followers of a run learn of this fact."""
    return type(event) in _MAKERS


def line(event: Event) -> bytes:
    """One line of a history, without the values that followers do not get."""
    name, data = public_event(event)
    return orjson.dumps({"event": name, "data": data}, default=str)


def public_event(event: Event) -> tuple[str, dict[str, Any]]:
    """The name and data that followers get for a fact that is theirs."""
    name, data = _MAKERS[type(event)](event)
    data["at"] = getattr(event, "at", None)
    return name, {key: value for key, value in data.items() if value is not None}


def _error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.get("code"), "message": str(error.get("message"))[:2000]}


def _attempt_failed(event: AttemptFailed) -> tuple[str, dict[str, Any]]:
    if event.spent == "parked":
        return "step.parked", {"step": event.step_id, "item": event.item, "key": event.key, "until": event.retry_at}
    return "step.retrying", {
        "step": event.step_id,
        "item": event.item,
        "error": _error(event.error),
        "retry_at": event.retry_at,
        "spent": event.spent,
        "duration_s": event.duration_s,
    }


def _step_started(event: StepStarted) -> tuple[str, dict[str, Any]]:
    if event.message is not None:
        return "step.waiting", {"step": event.step_id, "message": event.message}
    return "step.started", {"step": event.step_id, "items": event.count}


_MAKERS: Mapping[type[Any], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    RunSubmitted: lambda e: ("run.submitted", {"workflow": e.workflow, "state": "PENDING"}),
    RunSucceeded: lambda e: ("run.succeeded", {"state": "SUCCESS"}),
    RunFailed: lambda e: ("run.failed", {"state": "FAILED", "error": _error(e.error)}),
    RunCancelled: lambda e: ("run.cancelled", {"state": "CANCELLED", "reason": e.reason}),
    RunResumed: lambda e: ("run.resumed", {"state": "RUNNING", "kept": list(e.kept)}),
    StepSkipped: lambda e: ("step.skipped", {"step": e.step_id, "reason": e.reason}),
    StepDelayed: lambda e: ("step.delayed", {"step": e.step_id, "until": e.until}),
    StepParked: lambda e: ("step.parked", {"step": e.step_id, "item": e.item, "key": e.key}),
    StepStarted: _step_started,
    AttemptStarted: lambda e: (
        "step.started" if e.item is None else "item.started",
        {
            "step": e.step_id,
            "item": e.item,
            "attempt": e.attempt,
            "iteration": e.iteration or None,
            "child": e.child,
        },
    ),
    AttemptFailed: _attempt_failed,
    IterationSucceeded: lambda e: (
        "step.iterated",
        {"step": e.step_id, "iteration": e.iteration, "duration_s": e.duration_s, "chosen": e.chosen},
    ),
    ItemSucceeded: lambda e: (
        "item.succeeded",
        {"step": e.step_id, "item": e.item, "duration_s": e.duration_s, "chosen": e.chosen},
    ),
    ItemFailed: lambda e: (
        "item.failed",
        {"step": e.step_id, "item": e.item, "error": _error(e.error), "duration_s": e.duration_s},
    ),
    StepSucceeded: lambda e: (
        "step.succeeded",
        {"step": e.step_id, "duration_s": e.duration_s, "chosen": e.chosen, "error": _error(e.error)},
    ),
    StepFailed: lambda e: (
        "step.failed",
        {"step": e.step_id, "error": _error(e.error), "handled": e.handled, "duration_s": e.duration_s},
    ),
}
