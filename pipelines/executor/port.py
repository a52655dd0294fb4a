"""The executor port: how the run store has one attempt of one step done, without knowing Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.config.models import Resources

__all__ = ["Attempt", "Executor", "Outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a step (or of one `foreach` item of it), with everything that a worker needs.

    `fence` grows with every attempt of the step and is given to the script; `idempotency_key` is the same for all
    attempts of one step of one run. `input` is rendered already, or holds blob references that the worker resolves.
    `bundle` is the digest of the workflow's folder (scripts) in the blob store.
    """

    run_id: str
    workflow: str
    step_id: str
    item: int | None
    attempt: int
    fence: int
    idempotency_key: str
    type: Literal["python_script", "model_inference", "http_request"]
    input: Any
    bundle: str | None = None
    script: str | None = None
    function: str = "main"
    image: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    """For http_request: method, url, headers, body, expected status."""
    timeout_s: float | None = None
    resources: Resources = field(default_factory=Resources)
    seed: int | None = None
    priority: int | None = None
    lock_fence: int | None = None
    """With a lock across shards: grows with every holder of it, which `fence`, a shard's own number, does not."""
    inline_bytes: int | None = None
    """Bytes of JSON of its result that may be kept in line; None: as the configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `output` is JSON-like, large parts already replaced by blob references.

    `error` has the form of `HeadraceError.to_dict()`; `chosen` says which model, version and rule answered;
    `log` says where what the step printed stands: `{"key": …, "size": bytes}`.
    """

    status: Literal["success", "failed", "timeout", "cancelled"]
    output: Any = None
    error: Mapping[str, Any] | None = None
    chosen: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None
    duration_s: float = 0.0
    waited_s: float = 0.0
    """Of `duration_s`, what a script waited for a CPU that others had."""


class Executor(Protocol):
    """Runs attempts. Cancelling the awaiting asyncio task cancels the work: politely first, then by killing it."""

    async def run(self, attempt: Attempt) -> Outcome:
        """Never raises for anything the step did: that is an `Outcome`."""
        ...

    async def close(self) -> None: ...
