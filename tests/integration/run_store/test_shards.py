"""What holds over two shards on a real cluster: a lock, and the breaker of an http host, also when processes die."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.names import CONTROL_PLANE, NAMESPACE, run_store_actor, shard_of_key, shard_of_run
from cluster.ray_runtime import LocalCluster
from serve_apps.control.bootstrap import ensure_control_plane
from serve_apps.control.gateway import RayControlGateway
from serve_apps.http.runs_gateway import RayRunsGateway
from tests.integration.runs import comes, ended, surely

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LOCKED = """
workflow:
  name: locked
  steps:
    - {id: alone, type: python_script, resources: {cpus: 0.1}, concurrency: ledger}
"""
ALONE = b"""
import json, os, time
def main(input, context):
    file = os.open(input["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for what in ("begin", "end"):
        os.write(file, (json.dumps([what, context.fence]) + "\\n").encode())
        if what == "begin":
            while not os.path.exists(input["go"]):
                time.sleep(0.02)
            time.sleep(0.2)
    return context.fence
"""
CALL = """
workflow:
  name: call
  steps:
    - {id: ask, type: http_request, url: "{{input.url}}"}
"""


USED: set[str] = set()


@pytest.fixture
async def gateway(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[RayRunsGateway]:
    """A control plane and the run stores of two shards over an empty bucket."""
    import ray

    from pipelines.run_store.bootstrap import ensure_run_stores

    wire = to_wire(
        Config.model_validate(
            {
                "storage": {"url": f"file://{tmp_path}/bucket"},
                "state": {"shards": 2},
                # (Longer than the test takes.)
                "outbound_breaker": {"consecutive_failures": 2, "base_ejection_s": 300},
            }
        )
    )
    await asyncio.to_thread(ensure_control_plane, wire)
    await asyncio.to_thread(ensure_run_stores, wire)
    yield RayRunsGateway(shards=2, patience_s=120)
    for name in (*(run_store_actor(shard) for shard in range(2)), CONTROL_PLANE):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


async def kill(name: str) -> None:
    """kill -9 of an actor's process; Ray starts another one."""
    import ray

    actor = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
    if name == CONTROL_PLANE:
        pid = await actor.pid.remote()
    else:
        while (answer := await actor.ping.remote())[0] != "ok":
            pass  # (it waits for the start by itself)
        pid = answer[1]
    os.kill(pid, signal.SIGKILL)


async def waits(gateway: RayRunsGateway, run_id: str, what: dict[str, Any]) -> None:
    """Until the run's only step says that it waits for this."""

    async def so() -> bool:
        return bool((await gateway.get(run_id))["steps"][0].get("waiting") == what)

    await comes(so)


async def waiting_or_ended(gateway: RayRunsGateway, run_id: str) -> dict[str, Any] | None:
    """The run, once its only step waits for something or has ended."""
    view = await gateway.get(run_id)
    over = view["state"] not in ("PENDING", "RUNNING")
    return view if over or view["steps"][0].get("waiting") else None


async def submit_to(gateway: RayRunsGateway, shard: int, request: dict[str, Any]) -> str:
    """A run in this shard, which the gateway chooses by the key."""
    key = next(key for key in map(str, itertools.count()) if key not in USED and shard_of_key(f":{key}", 2) == shard)
    USED.add(key)
    return str((await surely(lambda: gateway.submit({**request, "idempotency_key": key})))["id"])


async def test_a_lock_holds_over_both_shards_though_processes_are_killed(
    gateway: RayRunsGateway, tmp_path: Path
) -> None:
    """One holder at a time, growing fences, and every run ends, with kill -9 of a shard and of the control plane."""
    await gateway.register({"workflow": LOCKED, "files": {"alone.py": ALONE}})
    journal, go = tmp_path / "journal", tmp_path / "go"
    body = {"workflow": "locked", "input": {"journal": str(journal), "go": str(go)}}
    runs = [await submit_to(gateway, n % 2, body) for n in range(12)]
    await waits(gateway, runs[-1], {"for": "lock", "key": "ledger"})
    (row,) = await surely(gateway.slots)
    assert (row["name"], row["limit"]) == ("lock:ledger", 1)
    assert {shard_of_run(one["run_id"]) for one in row["waiting"]} == {0, 1}
    await kill(CONTROL_PLANE)
    go.touch()
    await ended(gateway, runs[1])
    await kill(run_store_actor(0))
    views = [await ended(gateway, run) for run in runs]
    assert {view["state"] for view in views} == {"SUCCESS"}
    # An attempt whose shard was killed is begun again under a higher fence. Its worker may live on for a moment: what
    # it still does carries the old fence, by which others refuse it.
    counted = {view["output"]["alone"] for view in views}
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    whole = [(what, fence) for what, fence in entries if fence in counted]
    assert whole == [(what, fence) for fence in sorted(counted) for what in ("begin", "end")], "two held it"
    assert len(counted) == len(runs)
    assert await surely(gateway.slots) == []


async def test_a_hosts_breaker_opens_for_both_shards_and_outlives_the_control_plane(
    gateway: RayRunsGateway, tmp_path: Path
) -> None:
    """What one shard saw parks the other's steps, also after both were killed; they go on when it is closed."""
    answer = {"status": 500}

    async def serve(_: web.Request) -> web.Response:
        return web.json_response({}, status=answer["status"])

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host = f"127.0.0.1:{runner.addresses[0][1]}"
        await gateway.register({"workflow": CALL})
        body = {"workflow": "call", "input": {"url": f"http://{host}/"}}
        for _ in range(2):
            failed = await ended(gateway, await submit_to(gateway, 0, body))
            assert failed["state"] == "FAILED"
        control = RayControlGateway()

        async def opened() -> Any:
            return (await control.call("breakers", {}))["breakers"]

        rows = await comes(opened)
        assert rows[0]["target"] == f"http:{host}"

        async def parked_in_the_other() -> str | None:
            """A run that waits; none while the shard has not heard of the breaker, and finds out by itself."""
            run_id = await submit_to(gateway, 1, body)
            view = await comes(lambda: waiting_or_ended(gateway, run_id))
            return run_id if view["steps"][0].get("waiting") == closed else None

        closed = {"for": "breaker", "key": f"host:{host}"}
        parked = await comes(parked_in_the_other)
        await kill(CONTROL_PLANE)
        await kill(run_store_actor(1))
        await waits(gateway, parked, closed)
        answer["status"] = 200
        await surely(lambda: control.call("breaker_reset", {"target": f"http:{host}"}))
        view = await ended(gateway, parked)
        assert (view["state"], view["steps"][0]["attempts"]) == ("SUCCESS", 1)
    finally:
        await runner.cleanup()
