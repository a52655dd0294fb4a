"""Counts of a run store on `ray.util.metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster import metrics as names
from cluster.ray_metrics import make as ray_metric
from pipelines.executor.port import Attempt, Outcome

__all__ = ["RayMetrics"]


class RayMetrics:
    """Exports by `ray.util.metrics`. Counts are gathered in memory and handed over by `gauges`, every few seconds,
    since one call of Ray's costs tens of microseconds; and a gauge that is not set anew is soon forgotten."""

    def __init__(self, shard: int, make: Callable[[names.Metric], Any] = ray_metric) -> None:
        self._make = make
        self._log = f"runs/{shard}"
        self._runs: dict[tuple[str, str], int] = {}
        self._steps: dict[tuple[str, str, str], list[float]] = {}
        self._appends: list[float] = []
        self._submits: list[float] = []
        self._recovered_s: float | None = None
        self._webhooks: dict[str, int] = {}
        self._shown: set[str] = set()
        self._made: dict[str, Any] = {}

    def run_ended(self, workflow: str, state: str) -> None:
        self._runs[workflow, state] = self._runs.get((workflow, state), 0) + 1

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        key = (attempt.workflow, attempt.step_id, outcome.status)
        kept = self._steps.setdefault(key, [])
        if len(kept) < 1000:
            kept.append(outcome.duration_s)

    def submitted(self, seconds: float) -> None:
        if len(self._submits) < 1000:
            self._submits.append(seconds)

    def appended(self, seconds: float) -> None:
        if len(self._appends) < 1000:
            self._appends.append(seconds)

    def webhook_tried(self, outcome: str) -> None:
        self._webhooks[outcome] = self._webhooks.get(outcome, 0) + 1

    def recovered(self, seconds: float) -> None:
        self._recovered_s = seconds

    def gauges(self, active: dict[str, int], waiting: dict[str, int]) -> None:
        for (workflow, state), count in self._runs.items():
            self._metric(names.RUNS).inc(count, tags={"workflow": workflow, "state": state})
        for (workflow, step, outcome), durations in self._steps.items():
            tags = {"workflow": workflow, "step": step, "outcome": outcome}
            for seconds in durations:
                self._metric(names.STEP_SECONDS).observe(max(seconds, 0.0), tags=tags)
        log = {"log": self._log}
        for spec, durations in ((names.LOG_APPEND_SECONDS, self._appends), (names.SUBMIT_SECONDS, self._submits)):
            for seconds in durations:
                self._metric(spec).observe(max(seconds, 0.0), tags=log)
            durations.clear()
        if self._recovered_s is not None:
            self._metric(names.RECOVERY_SECONDS).set(self._recovered_s, tags=log)
        for outcome, count in self._webhooks.items():
            self._metric(names.WEBHOOKS).inc(count, tags={"outcome": outcome})
        for counted in (self._runs, self._steps, self._webhooks):
            counted.clear()
        self._shown |= active.keys()
        for workflow in self._shown:
            self._metric(names.RUNS_ACTIVE).set(active.get(workflow, 0), tags={"workflow": workflow})
        for reason, count in waiting.items():
            self._metric(names.STEPS_WAITING).set(count, tags={"reason": reason})

    def _metric(self, spec: names.Metric) -> Any:
        made = self._made.get(spec.name)
        if made is None:
            made = self._made[spec.name] = self._make(spec)
        return made
