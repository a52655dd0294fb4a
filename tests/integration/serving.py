"""A control plane and a router of a test's own on the session's cluster, and how to wait for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.errors import HeadraceError
from cluster.ray_runtime import LocalCluster
from headrace import AsyncClient


async def until(check: Callable[[], Any], *, seconds: float = 180.0) -> Any:
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


def wire(cluster: LocalCluster, bucket: Path, models: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in wire form: these models, a bucket of the test's own, no keys, the cluster's port."""
    data = {"storage": {"url": f"file://{bucket}"}, "models": dict(models), "auth": {"enabled": False}}
    wired = to_wire(Config.model_validate(data))
    wired["router"]["port"] = int(cluster.http_url.rpartition(":")[2])
    return wired


@asynccontextmanager
async def planes(wired: Mapping[str, Any]) -> AsyncIterator[None]:
    """A control plane and a router; both are gone afterwards, with every application."""
    import ray
    from ray import serve

    from cluster.names import CONTROL_PLANE, NAMESPACE
    from serve_apps.control.bootstrap import ensure_control_plane
    from serve_apps.router.bootstrap import deploy_router

    await asyncio.to_thread(ensure_control_plane, dict(wired))
    await asyncio.to_thread(deploy_router, dict(wired))
    try:
        yield
    finally:
        ray.kill(ray.get_actor(CONTROL_PLANE, NAMESPACE), no_restart=True)
        for app in serve.status().applications:
            serve.delete(app, _blocking=False)
        await until(lambda: not serve.status().applications, seconds=180)


async def answering(client: AsyncClient) -> None:
    """Wait until the router has heard of the control plane."""

    async def answers() -> bool:
        try:
            return bool(await client.status())
        except HeadraceError:
            return False

    await until(answers, seconds=180)


async def heard(status: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    """Wait until every router works with the table of now: by that one it decides what begins later. `status`: the
    control plane's operation of this name."""
    revision = (await status())["revision"]

    async def all_have_it() -> bool:
        routers = (await status())["routers"]
        return bool(routers) and all(router["revision"] >= revision for router in routers)

    await until(all_have_it)


async def deployed(client: AsyncClient, wired: Mapping[str, Any], *, seconds: float = 240.0) -> dict[str, Any]:
    """The deployment of this configuration, once it has ended."""
    made = await client.deploy({"config": dict(wired)})

    async def ended() -> Any:
        seen = await client.deployment(made["id"])
        return seen if seen["state"] != "running" else None

    return dict(await until(ended, seconds=seconds))


@asynccontextmanager
async def serving(cluster: LocalCluster, wired: Mapping[str, Any]) -> AsyncIterator[AsyncClient]:
    """`planes`, and a client of them over HTTP once every model is ready."""
    async with planes(wired), AsyncClient(cluster.http_url) as client:
        await answering(client)
        seen = await deployed(client, wired, seconds=480)
        assert seen["state"] == "done", seen
        yield client
