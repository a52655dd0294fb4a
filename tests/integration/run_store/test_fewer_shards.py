"""A real cluster over a bucket of more shards: keys, runs and blobs of the shard that takes no new runs any more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.errors import NotFound
from cluster.names import NAMESPACE, run_store_actor, shard_of_key
from cluster.ray_runtime import LocalCluster
from cluster.storage.file_bucket import FileBucket
from pipelines.run_store.layouts import settle_layouts
from pipelines.run_store.testing import StoreFactory, wait_ended
from pipelines.verify.reading import verify_url
from serve_apps.http.runs_gateway import RayRunsGateway

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DAY_S = 86_400.0
QUICK = "workflow: {name: quick, steps: [{id: a, type: python_script}]}"
ASK = "workflow: {name: ask, steps: [{id: ok, type: approval}]}"
KEYED = {
    "workflow": "ask",
    "idempotency_key": next(
        key for key in map(str, range(99)) if shard_of_key(f":{key}", 3) == 2 and shard_of_key(f":{key}", 2) == 0
    ),
}


@dataclass(frozen=True)
class Ago(SystemClock):
    """The machine's clock, so many seconds ago."""

    seconds: float

    def now(self) -> float:
        return super().now() - self.seconds


def large(text: str) -> dict[str, str]:
    """An input that is stored as a blob."""
    return {"text": text * 100_000}


@dataclass
class Before:
    """What three shards left in the bucket: `old` runs ended forty days ago, `keyed` waits in shard 2."""

    old: list[str]
    keyed: str


async def live_before(folder: Path) -> Before:
    """The life of three shards: long ago, and an hour ago."""
    bucket = FileBucket(folder)
    long_ago, lately = Ago(40 * DAY_S), Ago(3600.0)
    await settle_layouts(bucket, 3, now=long_ago.now())
    old = []
    for shard in range(3):
        factory = StoreFactory(bucket=bucket, shard=shard, clock=long_ago, ids=SystemIds(long_ago))
        async with factory.running() as store:
            await store.register({"workflow": QUICK})
            await store.register({"workflow": ASK})
            for text in (str(shard), "shared"):
                old.append((await store.submit({"workflow": "quick", "input": large(text)}))["id"])
                await wait_ended(store, old[-1])
            await store.archiver.snapshot()
    async with replace(factory, clock=lately, ids=SystemIds(lately)).running() as store:
        keyed = (await store.submit(KEYED))["id"]
    await bucket.close()
    for blob in folder.glob("blobs/*/*"):
        os.utime(blob, (long_ago.now(), long_ago.now()))
    return Before(old, keyed)


@pytest.fixture
async def gateway(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[RayRunsGateway]:
    yield RayRunsGateway(shards=2, patience_s=30)
    import ray

    for shard in range(3):
        ray.kill(ray.get_actor(run_store_actor(shard), namespace=NAMESPACE), no_restart=True)


async def test_a_shard_that_is_not_counted_any_more_keeps_its_promises(gateway: RayRunsGateway, tmp_path: Path) -> None:
    """Its keys are honoured, its runs end, and a collection over all shards removes what is old and nothing else."""
    from pipelines.run_store.bootstrap import ensure_run_stores

    before = await live_before(tmp_path / "bucket")
    retention = {"runs": DAY_S, "blobs": 2 * DAY_S}
    config = Config.model_validate(
        {"storage": {"url": f"file://{tmp_path}/bucket"}, "state": {"shards": 2, "retention": retention}}
    )
    await asyncio.to_thread(ensure_run_stores, to_wire(config))
    again = await gateway.submit(KEYED)
    assert (again["id"], again["created"]) == (before.keyed, False)
    ended = await gateway.signal(before.keyed, "ok", {"approved": True})
    assert ended["state"] == "SUCCESS"
    young = [await gateway.submit({"workflow": "ask", "input": large("shared")}) for _ in range(4)]
    assert {run["id"].split("-")[1] for run in young} <= {"0", "1"}
    assert len((await gateway.list_runs({"limit": 50}))["runs"]) == len(before.old) + 5
    for dry_run in (True, False):
        view = await gateway.collect(dry_run=dry_run)
        async with asyncio.timeout(180):
            while view["state"] == "running":
                await asyncio.sleep(0.1)
                view = await gateway.collection() or view
        assert (view["state"], view["error"], view["dry_run"]) == ("done", None, dry_run)
        assert (view["counts"]["runs"], view["counts"]["blobs"], view["counts"]["blobs_kept"]) == (6, 3, 1)
    for run in before.old:
        with pytest.raises(NotFound):
            await gateway.get(run)
    assert (await gateway.output(young[0]["id"], None))["state"] == "RUNNING"
    acknowledged = [*before.old, before.keyed, *(run["id"] for run in young)]
    report = await verify_url(config.storage, acknowledged=acknowledged)
    assert report.violations == []
    assert report.counts["runs collected"] == 6
