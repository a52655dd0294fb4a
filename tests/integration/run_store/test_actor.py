"""The run store as a Ray actor: it comes back by itself after kill -9, and no acknowledged run is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import Config, StateConfig, StorageConfig
from cluster.config.wire import to_wire
from cluster.names import NAMESPACE, run_store_actor, shard_of_key, shard_of_run
from cluster.ray_runtime import LocalCluster
from serve_apps.http.runs_gateway import RayRunsGateway
from tests.integration.runs import ended, surely

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

WORKFLOW = """
workflow:
  name: steps
  steps:
    - {id: first, type: python_script, resources: {cpus: 0.1}}
    - {id: slow, type: python_script, resources: {cpus: 0.1}, depends_on: [first]}
    - {id: last, type: python_script, resources: {cpus: 0.1}, input: "{{steps.slow.output}}"}
"""
FIRST = b"""
import os
def main(input, context):
    with open(os.path.join(input["folder"], f"{context.run_id}.{context.step_id}"), "a") as file:
        file.write("x")
    return input
"""
SLOW = b"""
import os, time
def main(input, context):
    time.sleep(input["first"]["sleep_s"])
    return input["first"]["n"]
"""
FILES = {"first.py": FIRST, "slow.py": SLOW, "last.py": b"def main(input): return input * 2"}


@pytest.fixture(scope="module")
def wire(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    import ray

    from pipelines.run_store.bootstrap import ensure_run_stores

    bucket = tmp_path_factory.mktemp("bucket")
    config = Config(storage=StorageConfig(url=f"file://{bucket}"), state=StateConfig(shards=2))
    made = to_wire(config)
    ensure_run_stores(made)
    yield made
    for shard in range(2):
        ray.kill(ray.get_actor(run_store_actor(shard), namespace=NAMESPACE), no_restart=True)


def pid_of(shard: int) -> int:
    import ray

    actor = ray.get_actor(run_store_actor(shard), namespace=NAMESPACE)
    return int(ray.get(actor.status.remote(), timeout=120)["pid"])


async def test_runs_end_over_both_shards(wire: dict[str, Any], tmp_path: Path) -> None:
    """Runs go to any shard, their scripts run as Ray tasks, and the merged list shows them all."""
    gateway = RayRunsGateway(shards=2)
    registered = await gateway.register({"workflow": WORKFLOW, "files": FILES})
    assert registered["name"] == "steps"
    body = {"workflow": "steps", "input": {"n": 21, "sleep_s": 0, "folder": str(tmp_path)}}
    submitted = [await gateway.submit(body) for _ in range(6)]
    views = [await ended(gateway, run["id"]) for run in submitted]
    assert [view["output"] for view in views] == [{"last": 42}] * 6
    assert {shard_of_run(run["id"]) for run in submitted} <= {0, 1}
    listed = await gateway.list_runs({"workflow": "steps", "limit": 4})
    assert [run["id"] for run in listed["runs"]] == [run["id"] for run in reversed(submitted)][:4]
    rest = await gateway.list_runs({"workflow": "steps", "limit": 4, "cursor": listed["next_cursor"]})
    assert [run["id"] for run in rest["runs"]][:2] == [run["id"] for run in reversed(submitted)][4:]


async def test_a_killed_actor_loses_no_acknowledged_run(wire: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 of the run store under load: it comes back and goes on by itself, and finished steps do not run again."""
    gateway = RayRunsGateway(shards=2, patience_s=120)
    await gateway.register({"workflow": WORKFLOW, "files": FILES})
    acknowledged: list[str] = []
    enough, stop = asyncio.Event(), asyncio.Event()

    async def submit(n: int, key: str) -> None:
        value = {"n": n, "sleep_s": 0.3, "folder": str(tmp_path)}
        body = {"workflow": "steps", "input": value, "idempotency_key": key}
        acknowledged.append((await surely(lambda: gateway.submit(body)))["id"])
        if len(acknowledged) >= 40:
            enough.set()

    async def load(worker: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            await submit(n, f"{tmp_path.name}-{worker}-{n}")

    async with asyncio.TaskGroup() as loads:
        for worker in range(4):
            loads.create_task(load(worker))
        await enough.wait()
        victim = await asyncio.to_thread(pid_of, 0)
        before = [run for run in acknowledged if shard_of_run(run) == 0]
        os.kill(victim, signal.SIGKILL)
        killed_at = time.time()
        # The load goes on until the shard that was killed takes a run again.
        keys = (f"{tmp_path.name}-{n}" for n in itertools.count())
        await submit(0, next(key for key in keys if shard_of_key(f":{key}", 2) == 0))
        stop.set()
    views = [await ended(gateway, run) for run in acknowledged]
    assert {view["state"] for view in views} == {"SUCCESS"}
    assert len(set(acknowledged)) == len(acknowledged)
    assert pid_of(0) != victim
    commits = [
        step["finished_at"]
        for view in views
        if shard_of_run(view["id"]) == 0
        for step in view["steps"]
        if step["finished_at"] > killed_at
    ]
    print(f"first committed step {min(commits) - killed_at:.2f} s after the kill; {len(before)} runs before it")
    # A step that had committed before the kill has run once; one in flight at the kill may have run twice.
    for view in views:
        if view["steps"][0]["finished_at"] < killed_at - 1:
            assert (tmp_path / f"{view['id']}.first").read_text() == "x"


async def test_a_changed_configuration_is_taken_over(wire: dict[str, Any], tmp_path: Path) -> None:
    """`ensure_run_stores` with another limit makes the running actors work by it, and their runs stay."""
    from pipelines.run_store.bootstrap import ensure_run_stores

    gateway = RayRunsGateway(shards=2)
    await gateway.register({"workflow": WORKFLOW, "files": FILES})
    body = {"workflow": "steps", "input": {"n": 1, "sleep_s": 0, "folder": str(tmp_path)}}
    run = await gateway.submit(body)
    await ended(gateway, run["id"])
    changed = {**wire, "limits": {**wire["limits"], "max_queued_runs": 7777}}
    await asyncio.to_thread(ensure_run_stores, changed)
    assert (await gateway.get(run["id"]))["state"] == "SUCCESS"
    await asyncio.to_thread(ensure_run_stores, wire)
