"""A version that is scaled to zero: woken by a request through the router, and ahead of need by what was learned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.config.models import Config, StorageConfig
from cluster.config.wire import to_wire
from cluster.errors import HeadraceError
from cluster.log import DurableLog
from cluster.ray_runtime import LocalCluster
from cluster.storage import open_bucket
from headrace import AsyncClient
from serve_apps.control.actor import LOG_PREFIX
from serve_apps.control.bootstrap import ensure_control_plane
from serve_apps.control.events import ArrivalsLearned, encode_event

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
COLD = {
    "provider": "python",
    "class": "serve_apps.hosts.testing:Echo",
    "resources": {"cpus": 0.1},
    "autoscaling": {"min_replicas": 0, "max_replicas": 1, "idle_s": 3},
}


async def until(check: Callable[[], Any], *, seconds: float = 120.0) -> Any:
    """Poll `check` (sync or async) until it gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.2)


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
    import ray
    from ray import serve

    from cluster.names import CONTROL_PLANE, NAMESPACE
    from serve_apps.router.bootstrap import deploy_router

    bucket = tmp_path / "bucket"
    await learned(bucket, "foreseen")
    data = {
        "storage": {"url": f"file://{bucket}"},
        "models": {name: {"versions": {"1.0.0": COLD}} for name in ("foreseen", "unforeseen")},
        "auth": {"enabled": False},
    }
    wired = to_wire(Config.model_validate(data))
    wired["router"]["port"] = int(ray_cluster.http_url.rpartition(":")[2])
    await asyncio.to_thread(ensure_control_plane, wired)
    await asyncio.to_thread(deploy_router, wired)
    async with AsyncClient(ray_cluster.http_url) as client:

        async def answers() -> bool:
            try:
                return bool(await client.status())
            except HeadraceError:
                return False

        await until(answers)
        made = await client.deploy({"config": wired})

        async def ready() -> bool:
            return bool((await client.deployment(made["id"]))["state"] == "done")

        await until(ready)
        yield client
    ray.kill(ray.get_actor(CONTROL_PLANE, NAMESPACE), no_restart=True)
    for app in serve.status().applications:
        serve.delete(app, _blocking=False)
    await until(lambda: not serve.status().applications)


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
