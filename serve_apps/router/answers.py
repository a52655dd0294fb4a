"""What the router hands back: a result or a stream, and who was chosen for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Self

from serve_apps.protocol import InferResult, StreamChunk

__all__ = ["Answer", "Chosen", "Chunks", "StreamAnswer"]


@dataclass(slots=True)
class Chosen:
    """Who answered, and how it came to that. `attempts` counts hops. Empty `version`: nobody could be asked."""

    model: str
    version: str = ""
    rule: str = ""
    attempts: int = 0
    why: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "rule": self.rule,
            "attempts": self.attempts,
            "why": list(self.why),
        }


@dataclass(slots=True)
class Answer:
    """A result (with outputs or an error, never raised), and who was chosen."""

    result: InferResult
    chosen: Chosen


class Chunks:
    """A stream whose first chunk has come. Closing it ends the work behind it, also when nothing was read: a generator
    that never ran would have no `finally` to do so."""

    def __init__(self, first: StreamChunk, rest: AsyncGenerator[StreamChunk, None]):
        self._first: StreamChunk | None = first
        self._rest = rest

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamChunk:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        self._first = None
        await self._rest.aclose()


@dataclass(slots=True)
class StreamAnswer:
    """A stream whose first chunk has come, so that its choice is final. Closing `chunks` cancels the work."""

    chosen: Chosen
    chunks: Chunks
