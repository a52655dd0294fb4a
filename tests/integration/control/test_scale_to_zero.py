"""A version that is scaled to zero: woken by a request through the router, and ahead of need by what was learned."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.config.models import StorageConfig
from cluster.log import DurableLog
from cluster.ray_runtime import LocalCluster
from cluster.storage import open_bucket
from headrace import AsyncClient
from serve_apps.control.actor import LOG_PREFIX
from serve_apps.control.events import ArrivalsLearned, encode_event
from tests.integration.serving import serving, until, wire

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
COLD = {
    "provider": "python",
    "class": "serve_apps.hosts.testing:Echo",
    "resources": {"cpus": 0.1},
    "autoscaling": {"min_replicas": 0, "max_replicas": 1, "idle_s": 3},
}


async def learned(bucket: Path, model: str) -> None:
    """A control plane that lived before has seen this hour's calls of `model` in three weeks."""
    now, store = time.time(), open_bucket(StorageConfig(url=f"file://{bucket}"))
    clock = SystemClock()
    log, _ = await DurableLog.open(store, LOG_PREFIX, clock=clock, ids=SystemIds(clock))
    calls = [now - week * 7 * 86_400 + step * 20 for week in (3, 2, 1) for step in range(-90, 91)]
    await log.append([encode_event(ArrivalsLearned(at=now, arrivals={model: calls}))])
    await log.close()
    await store.close()


@pytest.fixture
async def client(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A router, and a control plane with two idle models: `foreseen`, whose calls are known, and `unforeseen`."""
    bucket = tmp_path / "bucket"
    await learned(bucket, "foreseen")
    models = {name: {"versions": {"1.0.0": COLD}} for name in ("foreseen", "unforeseen")}
    async with serving(ray_cluster, wire(ray_cluster, bucket, models)) as client:
        yield client


def running(app: str) -> int:
    from ray import serve

    (deployment,) = serve.status().applications[app].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


async def test_an_idle_version_is_warmed_ahead_of_need_and_woken_by_need(client: AsyncClient) -> None:
    """Without calls both models give their replica back. The one that is usually called at this hour gets another
    without any request, the other one with its next request, which is answered."""
    await until(lambda: running("foreseen-1.0.0") == 0)
    await until(lambda: running("unforeseen-1.0.0") == 0)
    await until(lambda: running("foreseen-1.0.0") == 1)
    assert running("unforeseen-1.0.0") == 0
    answer = await client.infer("unforeseen", {"text": "good morning"}, timeout_s=90)
    assert answer.outputs["text"] == "good morning"
    assert running("unforeseen-1.0.0") == 1
