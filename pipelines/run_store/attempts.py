"""Attempts in flight: starts them on the executor, stops them, and reports each end exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.errors import HeadraceError, InternalError
from pipelines.engine import CancelAttempt, StartAttempt
from pipelines.executor.port import Attempt, Executor, Outcome

__all__ = ["Attempts"]

Report = Callable[[Attempt, Outcome], None]


class Attempts:
    """Keyed by fence. After `stop` nothing is reported any more: the next owner starts the attempts again."""

    def __init__(self, *, executor: Executor, report: Report) -> None:
        self._executor = executor
        self._report = report
        self._tasks: dict[int, asyncio.Task[Outcome]] = {}
        self._refused: set[int] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, command: StartAttempt) -> None:
        """Have the attempt done. One that was cancelled before its start was durable is not begun at all."""
        attempt = command.attempt
        if attempt.fence in self._refused:
            self._refused.discard(attempt.fence)
            self._report(attempt, Outcome(status="cancelled"))
            return
        task = asyncio.create_task(self._executor.run(attempt), name=f"attempt {attempt.run_id} {attempt.step_id}")
        self._tasks[attempt.fence] = task
        task.add_done_callback(lambda done: self._ended(attempt, done))

    def refuse(self, command: CancelAttempt) -> None:
        """The decision to cancel was made; until it is durable the attempt must at least not be begun."""
        if command.fence not in self._tasks:
            self._refused.add(command.fence)

    def cancel(self, command: CancelAttempt) -> None:
        """The decision to cancel is durable: stop the attempt if it runs."""
        self._refused.discard(command.fence)
        task = self._tasks.get(command.fence)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Cancel everything without reporting it, and wait until it is gone."""
        self._stopped = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, attempt: Attempt, task: asyncio.Task[Outcome]) -> None:
        self._tasks.pop(attempt.fence, None)
        if self._stopped:
            if not task.cancelled():
                task.exception()
            return
        if task.cancelled():
            outcome = Outcome(status="cancelled")
        elif (error := task.exception()) is not None:
            known = error if isinstance(error, HeadraceError) else InternalError(f"{type(error).__name__}: {error}")
            outcome = Outcome(status="failed", error=known.to_dict())
        else:
            outcome = task.result()
        self._report(attempt, outcome)
