"""What a run store exports: gauges as long as it lives, and every other count once."""

from __future__ import annotations

from cluster import metrics as names
from cluster.testing import RecordedMetrics
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.housekeeping import Reporter
from pipelines.run_store.metrics import NoMetrics
from pipelines.run_store.ray_metrics import RayMetrics
from pipelines.run_store.testing import StoreFactory
from tests.unit.run_store.stores import APPROVAL


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


class Told(NoMetrics):
    """Remembers the gauges of each report."""

    def __init__(self) -> None:
        self.reports: list[tuple[dict[str, int], dict[str, int]]] = []

    def gauges(self, active: dict[str, int], waiting: dict[str, int]) -> None:
        self.reports.append((active, waiting))


async def test_with_very_many_runs_the_last_count_is_told_again() -> None:
    """Counting takes long then, and happens more seldom; gauges are set at each beat all the same."""
    async with StoreFactory().running(FakeExecutor()) as store:
        await store.register({"workflow": APPROVAL})
        store.kernel.metrics = told = Told()
        often = Reporter(kernel=store.kernel)
        seldom = Reporter(kernel=store.kernel, runs_per_beat=1)
        for runs in range(3):
            await store.submit({"workflow": "ask"})
            seldom.beat()
            often.beat()
            assert told.reports[-1] == ({"ask": runs + 1}, {"queue": 0, "lock": 0, "parked": 0})
        assert [active["ask"] for active, _ in told.reports[::2]] == [1, 1, 3]
