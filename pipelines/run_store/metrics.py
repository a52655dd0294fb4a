"""Counts of a run store: the port, and an implementation that counts nothing."""

from __future__ import annotations

from typing import Protocol

from pipelines.executor.port import Attempt, Outcome

__all__ = ["NoMetrics", "StoreMetrics"]


class StoreMetrics(Protocol):
    """What the run store tells. Calls must be cheap: they are made on the event loop, for every attempt."""

    def run_ended(self, workflow: str, state: str) -> None: ...

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None: ...

    def submitted(self, seconds: float) -> None: ...

    def appended(self, seconds: float) -> None: ...

    def webhook_tried(self, outcome: str) -> None: ...

    def recovered(self, seconds: float) -> None: ...

    def gauges(self, active: dict[str, int], waiting: dict[str, int]) -> None:
        """Open runs by workflow, and waiting steps by reason."""
        ...


class NoMetrics:
    """Counts nothing."""

    def run_ended(self, workflow: str, state: str) -> None: ...

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None: ...

    def submitted(self, seconds: float) -> None: ...

    def appended(self, seconds: float) -> None: ...

    def webhook_tried(self, outcome: str) -> None: ...

    def recovered(self, seconds: float) -> None: ...

    def gauges(self, active: dict[str, int], waiting: dict[str, int]) -> None: ...
