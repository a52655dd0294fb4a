"""What the shell is asked to do, once the events of the same decision are durable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.slots.protocol import Ask
from pipelines.engine.events import Event
from pipelines.executor.port import Attempt

__all__ = ["AskSlot", "CancelAttempt", "Command", "Decision", "FetchValue", "RunEnded", "SlotDone", "StartAttempt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt:
    """Have this attempt done. Report how it ended by `Engine.attempt_finished`, exactly once per command, also when it
    was cancelled: its slot and its lock are held until then. `merge_key` (model inference): ready attempts with the
    same key may go to the router in one call; None: it goes alone.
    """

    attempt: Attempt
    merge_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt:
    """Stop the attempt with this fence: politely first, then by killing it. Its result is refused from now on."""

    run_id: str
    step_id: str
    item: int | None
    fence: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchValue:
    """Read this spilled value and hand its JSON content to `Engine.value_fetched`; asked once per value."""

    reference: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.reference["$blob"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSlot:
    """An attempt wants to start and needs slots that all shards share: have it granted, and say so by
    `Engine.granted`. Only with `EngineLimits.shared`.
    """

    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDone:
    """What was asked for under this ticket has ended, or is not wanted any more."""

    ticket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is in a final state: tell who waits, queue its webhook, archive its record and evict it when you like."""

    run_id: str
    state: str


Command = StartAttempt | CancelAttempt | FetchValue | AskSlot | SlotDone | RunEnded


@dataclass(slots=True)
class Decision:
    """What one input led to: facts for the log, already applied in memory, and commands for after their durability.

    `refused` says why the input changed nothing (a stale fence, a run that has ended); events are then empty.
    """

    events: list[Event] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    refused: str | None = None
    digest: str | None = None
    """Set by `Engine.register`: the name of the definition."""
