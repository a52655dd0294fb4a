"""What the control plane exports."""

from __future__ import annotations

from cluster import metrics as names
from cluster.testing import RecordedMetrics
from serve_apps.control.metrics import MetricsExporter
from serve_apps.control.service import ControlPlane

from .conftest import World
from .test_releases import start


async def test_a_release_is_seen_with_its_candidate_until_it_ends(world: World, plane: ControlPlane) -> None:
    """The share stands under the candidate's version, so that alert rules can tell both versions apart; at the end it
    is 0, and every move is counted."""
    seen = RecordedMetrics()
    exporter = MetricsExporter(seen.make)
    exporter.flush(plane.core.state)
    await start(plane)
    for _ in range(2):
        seen.forget_gauges()
        exporter.flush(plane.core.state)
        assert seen.of(names.RELEASE_STEP, model="echo", version="1.1.0") == [10]
        assert seen.of(names.TRAFFIC_WEIGHT, model="echo", version="1.0.0") == [90]
        assert seen.of(names.BREAKER_STATE, model="echo", version="1.0.0") == [0]
    await plane.call("release_rollback", {"model": "echo"})
    exporter.flush(plane.core.state)
    assert seen.of(names.RELEASE_STEP, model="echo", version="1.1.0") == [0]
    assert seen.of(names.RELEASE_DECISIONS, model="echo", decision="roll_back") == [1]
