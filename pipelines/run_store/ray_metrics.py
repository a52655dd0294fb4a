"""Counts of a run store on `ray.util.metrics`."""

from __future__ import annotations

from typing import Any

from cluster import metrics as names
from pipelines.executor.port import Attempt, Outcome

__all__ = ["RayMetrics"]


class RayMetrics:
    """Exports by `ray.util.metrics`. Counts are gathered in memory and handed over by `gauges`, about once a second,
    since one call of Ray's costs tens of microseconds."""

    def __init__(self, shard: int) -> None:
        self._log = f"runs/{shard}"
        self._runs: dict[tuple[str, str], int] = {}
        self._steps: dict[tuple[str, str, str], list[float]] = {}
        self._appends: list[float] = []
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

    def appended(self, seconds: float) -> None:
        if len(self._appends) < 1000:
            self._appends.append(seconds)

    def webhook_tried(self, outcome: str) -> None:
        self._webhooks[outcome] = self._webhooks.get(outcome, 0) + 1

    def recovered(self, seconds: float) -> None:
        self._metric(names.RECOVERY_SECONDS).set(seconds, tags={"log": self._log})

    def gauges(self, active: dict[str, int], waiting: dict[str, int]) -> None:
        for (workflow, state), count in self._runs.items():
            self._metric(names.RUNS).inc(count, tags={"workflow": workflow, "state": state})
        for (workflow, step, outcome), durations in self._steps.items():
            tags = {"workflow": workflow, "step": step, "outcome": outcome}
            for seconds in durations:
                self._metric(names.STEP_SECONDS).observe(max(seconds, 0.0), tags=tags)
        for seconds in self._appends:
            self._metric(names.LOG_APPEND_SECONDS).observe(max(seconds, 0.0), tags={"log": self._log})
        for outcome, count in self._webhooks.items():
            self._metric(names.WEBHOOKS).inc(count, tags={"outcome": outcome})
        for counted in (self._runs, self._steps, self._webhooks):
            counted.clear()
        self._appends.clear()
        for workflow in self._shown - active.keys():
            self._metric(names.RUNS_ACTIVE).set(0, tags={"workflow": workflow})
        for workflow, count in active.items():
            self._metric(names.RUNS_ACTIVE).set(count, tags={"workflow": workflow})
        self._shown = set(active)
        for reason, count in waiting.items():
            self._metric(names.STEPS_WAITING).set(count, tags={"reason": reason})

    def _metric(self, spec: names.Metric) -> Any:
        made = self._made.get(spec.name)
        if made is None:
            from ray.util import metrics as ray_metrics

            if spec.kind is names.Kind.COUNTER:
                made = ray_metrics.Counter(spec.name, description=spec.help, tag_keys=spec.labels)
            elif spec.kind is names.Kind.GAUGE:
                made = ray_metrics.Gauge(spec.name, description=spec.help, tag_keys=spec.labels)
            else:
                made = ray_metrics.Histogram(
                    spec.name, description=spec.help, boundaries=list(spec.buckets), tag_keys=spec.labels
                )
            self._made[spec.name] = made
        return made
