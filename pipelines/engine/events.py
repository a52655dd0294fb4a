"""Everything that can happen to a run, as facts. The durable log holds exactly these; replaying them gives the state.

Times (`at`, `until`, …) are seconds since the epoch, decided when the fact was and never recomputed. `fence` is the
shard-wide number of an attempt: it only grows. `item` is the index in a `foreach`, None elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "EVENTS",
    "AttemptFailed",
    "AttemptStarted",
    "Event",
    "ItemFailed",
    "ItemSucceeded",
    "IterationSucceeded",
    "RunCancelled",
    "RunEvicted",
    "RunFailed",
    "RunRestored",
    "RunResumed",
    "RunSubmitted",
    "RunSucceeded",
    "StepDelayed",
    "StepFailed",
    "StepParked",
    "StepSkipped",
    "StepStarted",
    "StepSucceeded",
    "WorkflowRegistered",
]

Json = Any
Error = Mapping[str, Any]
"""Form of `HeadraceError.to_dict()`: code, message, status, retryable, details?, retry_after_s?."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowRegistered:
    """A definition is known from now on, and is the newest of its name. `digest` names it for ever."""

    name: str
    digest: str
    spec: Mapping[str, Any]
    at: float
    bundle: str | None = None
    scripts: Mapping[str, str] | None = None
    """Step id to the sha256 of its script, where the registrar knows it: an edited script is an edited step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted:
    """A run exists. `parent` is `[run id, step id, item or None]` for a nested workflow."""

    run_id: str
    workflow: str
    digest: str
    input: Json
    at: float
    priority: int = 1
    seed: int | None = None
    depth: int = 0
    parent: tuple[str, str, int | None] | None = None
    meta: Mapping[str, Any] | None = None
    """What the run store attaches (webhook, idempotency key, caller): kept and shown, never read by the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSucceeded:
    run_id: str
    output: Json
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """Steps that had not ended are CANCELLED by it (they exist only after a timeout or with `fail_fast`)."""

    run_id: str
    error: Error
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled:
    """Steps that had not ended are CANCELLED by it."""

    run_id: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """A FAILED or CANCELLED run goes on. Steps in `kept` stay as they are; `partial` ones go back to PENDING but keep
    their finished items or iterations; all others start anew. `digest` may name an edited definition; `nested` are
    steps whose nested workflow was edited, so that they and their readers run again under whatever digest. `named`: a
    definition was named in the resume, which then holds for nested runs that go on, too.
    """

    run_id: str
    digest: str
    kept: tuple[str, ...]
    partial: tuple[str, ...]
    at: float
    nested: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvicted:
    """A finished run has left memory; its record is in the bucket."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRestored:
    """A finished run is back in memory, from its record (`Engine.record`), to be resumed."""

    run_id: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped:
    """`reason`: `when`, or what the dependencies did."""

    run_id: str
    step_id: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDelayed:
    """The step's `delay` began; nothing runs before `until`."""

    run_id: str
    step_id: str
    until: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParked:
    """A breaker is open for `key` (`model:NAME` or `host:NAME`): the step, or item, waits and spends no retry."""

    run_id: str
    step_id: str
    key: str
    at: float
    item: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step that needs no attempt of its own began: a `foreach` with `count` items, or an approval with `message`."""

    run_id: str
    step_id: str
    at: float
    count: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """One try of a step or item. `lock` is the concurrency key that it holds, `child` the nested run doing the work.
    `lock_fence`: under which the arbiter of all shards granted the lock; None where the shard is the only one.
    """

    run_id: str
    step_id: str
    attempt: int
    fence: int
    at: float
    item: int | None = None
    iteration: int = 0
    lock: str | None = None
    child: str | None = None
    lock_fence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """A try failed and another follows at `retry_at`. `spent` says what it cost: `failure` counts against
    `max_attempts`; `lost` (the worker died), `busy` (nobody could take it) and `parked` (breaker `key`) do not.
    """

    run_id: str
    step_id: str
    fence: int
    error: Error
    retry_at: float
    at: float
    item: int | None = None
    spent: str = "failure"
    key: str | None = None
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSucceeded:
    """One round of a `loop` committed its output."""

    run_id: str
    step_id: str
    fence: int
    iteration: int
    output: Json
    at: float
    chosen: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSucceeded:
    """One item of a `foreach` committed its output."""

    run_id: str
    step_id: str
    item: int
    fence: int
    output: Json
    at: float
    chosen: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailed:
    """One item failed for good. `fence` 0: it never started (its input could not be made)."""

    run_id: str
    step_id: str
    item: int
    error: Error
    at: float
    fence: int = 0
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSucceeded:
    """A step committed its result. For a `foreach` the output is its items' (here None), for a `loop` the last round's.

    `error` is set where `on_error: {default: …}` put `output` in the place of a failure. `fence` 0: no attempt of the
    step itself (items, rounds, approvals, defaults before a start).
    """

    run_id: str
    step_id: str
    output: Json
    at: float
    fence: int = 0
    error: Error | None = None
    chosen: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """A step failed for good. `handled`: `fail`, `continue`, or `goto` (its handler step now runs)."""

    run_id: str
    step_id: str
    error: Error
    at: float
    fence: int = 0
    handled: str = "fail"
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0


Event = (
    WorkflowRegistered
    | RunSubmitted
    | RunSucceeded
    | RunFailed
    | RunCancelled
    | RunResumed
    | RunEvicted
    | RunRestored
    | StepSkipped
    | StepDelayed
    | StepParked
    | StepStarted
    | AttemptStarted
    | AttemptFailed
    | IterationSucceeded
    | ItemSucceeded
    | ItemFailed
    | StepSucceeded
    | StepFailed
)

EVENTS: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        WorkflowRegistered,
        RunSubmitted,
        RunSucceeded,
        RunFailed,
        RunCancelled,
        RunResumed,
        RunEvicted,
        RunRestored,
        StepSkipped,
        StepDelayed,
        StepParked,
        StepStarted,
        AttemptStarted,
        AttemptFailed,
        IterationSucceeded,
        ItemSucceeded,
        ItemFailed,
        StepSucceeded,
        StepFailed,
    )
}
"""By the name that stands in the log."""
