"""What a run store exports: gauges as long as it lives, and every other count once."""

from __future__ import annotations

from cluster import metrics as names
from cluster.testing import RecordedMetrics
from pipelines.run_store.ray_metrics import RayMetrics


def test_gauges_are_set_at_every_report() -> None:
    """Ray forgets a gauge that is not set anew: the time of recovery and an idle workflow's zero stay visible."""
    seen = RecordedMetrics()
    metrics = RayMetrics(0, make=seen.make)
    metrics.recovered(1.5)
    metrics.gauges({"greet": 2}, {"lock": 3})
    for _ in range(2):
        seen.forget_gauges()
        metrics.gauges({}, {"lock": 0})
        assert seen.of(names.RECOVERY_SECONDS, log="runs/0") == [1.5]
        assert seen.of(names.RUNS_ACTIVE, workflow="greet") == [0]
        assert seen.of(names.STEPS_WAITING, reason="lock") == [0]


def test_what_happened_is_handed_over_once() -> None:
    """Counts and durations wait in memory for the next report, and are not told twice."""
    seen = RecordedMetrics()
    metrics = RayMetrics(1, make=seen.make)
    metrics.submitted(0.2)
    metrics.appended(0.1)
    metrics.run_ended("greet", "SUCCESS")
    metrics.webhook_tried("delivered")
    assert seen.of(names.SUBMIT_SECONDS, log="runs/1") == []
    for _ in range(2):
        metrics.gauges({}, {})
        assert seen.of(names.SUBMIT_SECONDS, log="runs/1") == [0.2]
        assert seen.of(names.LOG_APPEND_SECONDS, log="runs/1") == [0.1]
        assert seen.of(names.RUNS, workflow="greet", state="SUCCESS") == [1]
        assert seen.of(names.WEBHOOKS, outcome="delivered") == [1]
