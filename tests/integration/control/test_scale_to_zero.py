"""A version that is scaled to zero: woken by a request through the router, and ahead of need by what was learned."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.config.models import StorageConfig
from cluster.log import DurableLog
from cluster.names import ROUTER_APP
from cluster.ray_runtime import LocalCluster
from cluster.storage import open_bucket
from headrace import AsyncClient
from serve_apps.control.actor import LOG_PREFIX
from serve_apps.control.events import ArrivalsLearned, encode_event
from serve_apps.protocol import InferRequest
from tests.integration.serving import serving, until, wire

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
COLD = {
    "provider": "python",
    "class": "serve_apps.hosts.testing:Echo",
    "resources": {"cpus": 0.1},
    "autoscaling": {"min_replicas": 0, "max_replicas": 1, "idle_s": 3},
}


async def learned(bucket: Path, model: str) -> None:
    """A control plane that lived before has seen this hour's calls of `model` in three weeks, and runs that went on
    from `unforeseen` to `following`."""
    now, store = time.time(), open_bucket(StorageConfig(url=f"file://{bucket}"))
    clock = SystemClock()
    log, _ = await DurableLog.open(store, LOG_PREFIX, clock=clock, ids=SystemIds(clock))
    calls = [now - week * 7 * 86_400 + step * 20 for week in (3, 2, 1) for step in range(-90, 91)]
    follows = {"unforeseen": {"": 20, "following": 19}}
    await log.append([encode_event(ArrivalsLearned(at=now, arrivals={model: calls}, follows=follows))])
    await log.close()
    await store.close()


@pytest.fixture
async def client(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A router, and a control plane with idle models: `foreseen`, whose calls are known, `unforeseen`, `following`."""
    bucket = tmp_path / "bucket"
    await learned(bucket, "foreseen")
    models = {name: {"versions": {"1.0.0": COLD}} for name in ("foreseen", "unforeseen", "following")}
    async with serving(ray_cluster, wire(ray_cluster, bucket, models)) as client:
        yield client


def running(app: str) -> int:
    from ray import serve

    (deployment,) = serve.status().applications[app].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


async def test_an_idle_version_is_warmed_ahead_of_need_and_woken_by_need(client: AsyncClient) -> None:
    """Without calls the models give their replicas back. The one that is usually called at this hour gets another
    without any request, another one with its next request, which is answered. When that request belongs to a run, the
    model that runs usually call next is warmed, too."""
    from ray import serve

    for name in ("foreseen", "unforeseen", "following"):
        await until(lambda app=f"{name}-1.0.0": running(app) == 0)
    await until(lambda: running("foreseen-1.0.0") == 1)
    assert running("unforeseen-1.0.0") == 0
    answer = await client.infer("unforeseen", {"text": "good morning"}, timeout_s=90)
    assert answer.outputs["text"] == "good morning"
    assert running("following-1.0.0") == 0
    step = InferRequest(id="step", inputs={"text": ["first step"]})
    ((result, _),) = await serve.get_app_handle(ROUTER_APP).infer_many.remote("unforeseen", [step], sticky=["run-1"])
    assert result.error is None
    await until(lambda: running("following-1.0.0") == 1)
