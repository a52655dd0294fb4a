"""A scriptable executor for tests of the engine, the run store and simulations: no Ray, no files, no clock."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import HeadraceError, ObjectNotFound
from pipelines.executor.errors import StepError
from pipelines.executor.port import Attempt, Outcome

__all__ = ["FakeExecutor", "MemoryBlobs"]

Answer = Outcome | BaseException | Callable[[Attempt], Any] | Any


@dataclass
class MemoryBlobs:
    """`Blobs` in a dict, by SHA-256; logs by their key."""

    data: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)

    def get_blocking(self, reference: Mapping[str, Any]) -> bytes:
        try:
            return self.data[reference["$blob"]]
        except KeyError:
            raise ObjectNotFound(f"no blob {reference['$blob']}") from None

    def put_blocking(self, data: bytes, *, media_type: str, name: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        return {"$blob": digest, "size": len(data), "media_type": media_type, "name": name}

    def fetch_blocking(self, reference: Mapping[str, Any], path: Path) -> None:
        path.write_bytes(self.get_blocking(reference))

    def put_file_blocking(self, path: Path, *, media_type: str, name: str) -> dict[str, Any]:
        return self.put_blocking(path.read_bytes(), media_type=media_type, name=name)

    def put_log_blocking(self, key: str, text: bytes) -> None:
        self.logs[key] = text

    put_last_log_blocking = put_log_blocking

    def logs_together(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class FakeExecutor:
    """`Executor` whose answers a test sets. Without one a step succeeds and gives back its input.

    `answers[step_id]` is an `Outcome`, an exception (a `HeadraceError` becomes its own failure, any other a
    `step_error`), a function of the attempt (sync or async) that returns or raises such a thing, or a plain value
    (the output). `in_turn(step_id, [...])` gives one answer per attempt, the last one again and again.
    `hold(step_id)` makes attempts wait until `release(step_id)`.

    `started` and `finished` list attempts in order; `cancelled` those whose task was cancelled.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    started: list[Attempt] = field(default_factory=list)
    finished: list[Attempt] = field(default_factory=list)
    cancelled: list[Attempt] = field(default_factory=list)
    closed: bool = False
    _held: dict[str, asyncio.Event] = field(default_factory=dict)
    _turns: dict[str, list[Answer]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def in_turn(self, step_id: str, answers: Sequence[Answer]) -> None:
        """One answer per attempt of this step, the last one repeated."""
        self._turns[step_id] = list(answers)

    def hold(self, step_id: str) -> None:
        """Attempts of this step wait until `release`."""
        self._held.setdefault(step_id, asyncio.Event())

    def release(self, step_id: str) -> None:
        """Lets held attempts, and later ones, go on."""
        event = self._held.pop(step_id, None)
        if event is not None:
            event.set()

    async def wait_started(self, count: int = 1, step_id: str | None = None, timeout_s: float = 60.0) -> list[Attempt]:
        """Waits until `count` attempts (of the step) have started and returns them. Raises `TimeoutError`."""

        def matching() -> list[Attempt]:
            return [a for a in self.started if step_id is None or a.step_id == step_id]

        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(matching()) >= count)
        return matching()

    async def run(self, attempt: Attempt) -> Outcome:
        async with self._changed:
            self.started.append(attempt)
            self._changed.notify_all()
        try:
            held = self._held.get(attempt.step_id)
            if held is not None:
                await held.wait()
            outcome = await self._answer(attempt)
        except asyncio.CancelledError:
            self.cancelled.append(attempt)
            raise
        self.finished.append(attempt)
        return outcome

    async def close(self) -> None:
        self.closed = True

    async def _answer(self, attempt: Attempt) -> Outcome:
        turns = self._turns.get(attempt.step_id)
        if turns:
            answer = turns.pop(0) if len(turns) > 1 else turns[0]
        else:
            answer = self.answers.get(attempt.step_id, lambda a: a.input)
        try:
            if callable(answer) and not isinstance(answer, BaseException):
                answer = answer(attempt)
                if inspect.isawaitable(answer):
                    answer = await answer
            if isinstance(answer, BaseException):
                raise answer
        except HeadraceError as error:
            return Outcome(status="failed", error=error.to_dict())
        except Exception as error:
            failure = StepError(f"{type(error).__name__}: {error}", details={"type": type(error).__name__})
            return Outcome(status="failed", error=failure.to_dict())
        return answer if isinstance(answer, Outcome) else Outcome(status="success", output=answer)
