"""What travels between a router and a host: requests and results of one model version. No Ray, no HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.errors import HeadraceError

__all__ = ["BARE_INPUT", "HostPort", "InferRequest", "InferResult", "StreamChunk", "seed_of"]

BARE_INPUT = "$value"
"""Name of a column whose input the caller does not know: the router binds it to the chosen model's signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One caller's request: `rows` items for one model version.

    `inputs` maps an input's name to its column: a list of `rows` values, or a numpy array of shape [rows, *dims].
    `parameters` apply to every row (`max_tokens`, `temperature`, `seed`, …).
    `deadline_s` is wall time in seconds since the epoch after which nobody waits for the answer; None: no deadline.
    `priority`: 0 is the most urgent level; None: the host's default level.
    `choices`: where several answers to one prompt are asked for, which of them each row is, from 0; empty: the first.
    A seed (`parameters`, or the version's own) is that of the first answer; the others' follow from it (`seed_of`).
    """

    id: str
    inputs: Mapping[str, Any]
    rows: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    priority: int | None = None
    choices: Sequence[int] = ()


def seed_of(seed: int, choice: int) -> int:
    """The seed of the answer number `choice` to one prompt, from 0: the first has `seed` itself.

    Hashed and not counted up: else the second answer under one seed would be the first one under the next.
    """
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResult:
    """The answer to one `InferRequest`: either `outputs` (columns, as in the request) or `error`.

    `usage` sums over the rows (`prompt_tokens`, `completion_tokens`) where the model counts tokens.
    """

    outputs: Mapping[str, Any] | None = None
    error: HeadraceError | None = None
    usage: Mapping[str, int] | None = None
    finish_reasons: Sequence[str | None] | None = None
    """One per row, of models that generate text: "stop" or "length"."""
    extras: Sequence[Mapping[str, Any] | None] | None = None
    """One per row: what a chat endpoint's choice holds beside its text, under its own names: `message` (`tool_calls`,
    `refusal`, …) and `logprobs`."""
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChunk:
    """One piece of a streamed answer: `text` to append; the last one carries `finish_reason` and `usage`.

    `extra`: as in `InferResult.extras`, `message` being the piece of it that came now."""

    text: str = ""
    extra: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    error: HeadraceError | None = None


class HostPort(Protocol):
    """A host as its callers see it: a Serve handle in production, a fake in unit tests."""

    async def infer(self, requests: Sequence[InferRequest]) -> list[InferResult]:
        """Answers in the order of the requests. Errors of single requests are in their results; raising means that
        the host as a whole could not be reached."""
        ...

    def stream(self, request: InferRequest) -> AsyncIterator[StreamChunk]: ...

    def reachable(self) -> bool:
        """False when it is known that no replica runs, so that a call would wait for one. Cheap and without waiting."""
        ...
