"""What holds over two shards on a real cluster: a lock, and the breaker of an http host, also when processes die."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
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
        os.write(file, (json.dumps([what, context.run_id, context.fence]) + "\\n").encode())
        if what == "begin":
            time.sleep(0.3)
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
                "outbound_breaker": {"consecutive_failures": 2, "base_ejection_s": 8, "half_open_requests": 2},
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
    pid = await actor.pid.remote() if name == CONTROL_PLANE else (await actor.ping.remote())[1]
    os.kill(pid, signal.SIGKILL)


async def ended(gateway: RayRunsGateway, run_id: str) -> dict[str, Any]:
    async with asyncio.timeout(180):
        after = 0
        while True:
            page = await gateway.events(run_id, after, 10.0)
            if page["events"]:
                after = page["events"][-1]["id"]
            if page["done"]:
                return await gateway.get(run_id)


async def comes(look: Callable[[], Awaitable[Any]]) -> Any:
    """Ask again until there is an answer that is not empty."""
    async with asyncio.timeout(120):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.05)


async def waits(gateway: RayRunsGateway, run_id: str, what: dict[str, Any]) -> None:
    """Until the run's only step says that it waits for this."""

    async def so() -> bool:
        return bool((await gateway.get(run_id))["steps"][0].get("waiting") == what)

    await comes(so)


async def submit_to(gateway: RayRunsGateway, shard: int, request: dict[str, Any]) -> str:
    """A run in this shard, which the gateway chooses by the key."""
    key = next(key for key in map(str, itertools.count()) if key not in USED and shard_of_key(f":{key}", 2) == shard)
    USED.add(key)
    return str((await gateway.submit({**request, "idempotency_key": key}))["id"])


async def test_a_lock_holds_over_both_shards_though_processes_are_killed(
    gateway: RayRunsGateway, tmp_path: Path
) -> None:
    """One holder at a time, growing fences, and every run ends, with kill -9 of a shard and of the control plane."""
    await gateway.register({"workflow": LOCKED, "files": {"alone.py": ALONE}})
    journal = tmp_path / "journal"
    body = {"workflow": "locked", "input": {"journal": str(journal)}}
    runs = [await submit_to(gateway, n % 2, body) for n in range(12)]
    await waits(gateway, runs[-1], {"for": "lock", "key": "ledger"})
    (row,) = await gateway.slots()
    assert (row["name"], row["limit"]) == ("lock:ledger", 1)
    assert {shard_of_run(one["run_id"]) for one in row["waiting"]} == {0, 1}
    await kill(CONTROL_PLANE)
    await ended(gateway, runs[1])
    await kill(run_store_actor(0))
    views = [await ended(gateway, run) for run in runs]
    assert {view["state"] for view in views} == {"SUCCESS"}
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    begun = [fence for what, _, fence in entries if what == "begin"]
    assert begun == sorted(set(begun)), "a later holder has a smaller fence"
    killed = {fence for fence in begun if ["end", fence] not in [[what, f] for what, _, f in entries]}
    whole = [(what, fence) for what, _, fence in entries if fence not in killed]
    assert whole == [pair for _, fence in whole[::2] for pair in (("begin", fence), ("end", fence))], "two held it"
    assert await gateway.slots() == []


async def test_a_hosts_breaker_opens_for_both_shards_and_outlives_the_control_plane(
    gateway: RayRunsGateway, tmp_path: Path
) -> None:
    """What one shard saw parks the other's steps, also while the control plane is dead; probes let them go on."""
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
        parked = await submit_to(gateway, 1, body)
        await waits(gateway, parked, {"for": "breaker", "key": f"host:{host}"})
        await kill(CONTROL_PLANE)
        await kill(run_store_actor(1))
        answer["status"] = 200
        view = await ended(gateway, parked)
        assert (view["state"], view["steps"][0]["attempts"]) == ("SUCCESS", 1)
    finally:
        await runner.cleanup()
