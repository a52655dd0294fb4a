"""What a router exports."""

from __future__ import annotations

from cluster import metrics as names
from cluster.testing import RecordedMetrics
from serve_apps.router.metrics import MetricsExporter
from serve_apps.testing import model_entry, table_of
from tests.unit.router.routers import call, make


async def test_gauges_of_an_idle_router_stay_visible() -> None:
    """Ray forgets a gauge that is not set anew, so idle models are exported too; answers are counted once."""
    seen = RecordedMetrics()
    exporter = MetricsExporter(seen.make)
    router, _ = make(table_of(model_entry("m"), model_entry("idle")))
    await router.infer(call())
    for _ in range(2):
        seen.forget_gauges()
        await exporter.flush(router)
        assert seen.of(names.IN_FLIGHT, model="m") == seen.of(names.IN_FLIGHT, model="idle") == [0]
        assert seen.of(names.TABLE_REVISION) == [router.table.revision]
        assert seen.of(names.REQUESTS, model="m", version="1.0.0", rule="direct", outcome="success") == [1]
        assert len(seen.of(names.REQUEST_SECONDS, model="m", version="1.0.0")) == 1
