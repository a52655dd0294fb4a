"""Placement on a real cluster of several nodes: Ray itself chooses, by what headrace asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import Config, Resources, VersionConfig
from cluster.config.wire import to_wire
from cluster.names import CONTROL_PLANE, NAMESPACE
from cluster.placement import ACCELERATOR_LABEL, GPU_MEMORY_LABEL, place
from cluster.ray_runtime import LocalCluster
from serve_apps.control.bootstrap import ensure_control_plane
from serve_apps.control.gateway import RayControlGateway
from serve_apps.hosts.app import cluster_nodes, deployment_options
from tests.extra_nodes import ExtraNode
from tests.integration import serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ECHO = {"provider": "python", "class": "serve_apps.hosts.testing:Echo", "resources": {"cpus": 0.1}}


until = partial(serving.until, seconds=150.0)


def alive() -> dict[str, str]:
    """Names of the live nodes, by the label `name` -> node id; the head has none and is called so."""
    import ray

    return {node["Labels"].get("name", "head"): node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.fixture
async def nodes(ray_cluster: LocalCluster) -> AsyncIterator[list[ExtraNode]]:
    """Beside the head (16 CPU): a node with two H100s, and one with a card that nobody knows (10 GiB by its label)."""
    extra: list[ExtraNode] = []
    try:
        labels = {"name": "h100", ACCELERATOR_LABEL: "H100", "zone": "a"}
        extra.append(await asyncio.to_thread(ExtraNode, ray_cluster, cpus=4, gpus=2, labels=labels))
        labels = {"name": "odd", GPU_MEMORY_LABEL: "10"}
        extra.append(await asyncio.to_thread(ExtraNode, ray_cluster, cpus=4, gpus=1, labels=labels))
        await until(lambda: set(alive()) == {"head", "h100", "odd"})
        yield extra
    finally:
        for node in extra:
            await asyncio.to_thread(node.stop)
        await until(lambda: set(alive()) == {"head"})


@pytest.fixture
def actor() -> Iterator[Callable[..., str]]:
    """Starts an actor with the very options of a host with these resources; says on which node Ray put it."""
    import ray

    kept: list[Any] = []

    @ray.remote
    class Where:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    def start(**resources: Any) -> str:
        wanted = Resources(**resources)
        config = VersionConfig.model_validate({**ECHO, "resources": wanted.model_dump()})
        options = deployment_options(config, place(wanted, cluster_nodes()))["ray_actor_options"]
        kept.append(Where.options(**{**options, "runtime_env": {}}).remote())
        node = ray.get(kept[-1].node.remote(), timeout=60)
        return next(name for name, identifier in alive().items() if identifier == node)

    yield start
    for made in kept:
        ray.kill(made)


async def test_ray_puts_each_host_where_it_belongs(nodes: list[ExtraNode], actor: Callable[..., str]) -> None:
    """CPU hosts keep off both GPU nodes, also off the one whose card has no label, when the plain node fills up; shares
    of a card land on the card they were computed for; labels are obeyed."""
    assert [actor(cpus=3) for _ in range(4)] == ["head"] * 4
    assert actor(cpus=0.1, vram_gb=8) == "odd", "the smallest card that fits"
    assert actor(cpus=0.1, vram_gb=20) == "h100"
    assert actor(cpus=0.1, gpus=1, accelerator="H100") == "h100"
    assert actor(cpus=0.1, labels={"zone": "a"}) == "h100", "only a GPU node has this label"


def wire(bucket: Path, versions: dict[str, Any]) -> dict[str, Any]:
    data = {"storage": {"url": f"file://{bucket}"}, "models": {"echo": {"versions": versions}}}
    return to_wire(Config.model_validate({**data, "auth": {"enabled": False}}))


@pytest.fixture
async def gateway(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[RayControlGateway]:
    """A control plane over an empty bucket; no router."""
    import ray
    from ray import serve

    wired = wire(tmp_path / "bucket", {"1.0.0": ECHO})
    wired["router"]["port"] = int(ray_cluster.http_url.rpartition(":")[2])
    await asyncio.to_thread(ensure_control_plane, wired)
    yield RayControlGateway()
    ray.kill(ray.get_actor(CONTROL_PLANE, NAMESPACE), no_restart=True)
    for app in serve.status().applications:
        serve.delete(app, _blocking=False)
    await until(lambda: not serve.status().applications)


async def deployed(gateway: RayControlGateway, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Version -> its line of the deployment, once that has ended."""
    answer = await gateway.call("deploy", {"config": config})

    async def ended() -> Any:
        seen = await gateway.call("deployment", {"id": answer["id"]})
        return seen if seen["state"] != "running" else None

    seen = await until(ended)
    return {item["version"]: item for item in seen["items"] if item.get("version")}


def node_of(app: str) -> str | None:
    """The name of the node on which the application's replica runs."""
    from ray.serve.context import _get_global_client

    (deployment,) = _get_global_client().get_serve_details()["applications"][app]["deployments"].values()
    running = [replica["node_id"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]
    return next((name for name, identifier in alive().items() if running and identifier == running[0]), None)


async def test_what_no_node_can_take_is_refused_until_a_node_joins(
    ray_cluster: LocalCluster, gateway: RayControlGateway, tmp_path: Path
) -> None:
    """`deploy` says at once what was asked and what every node has, beside a version that is fine; after a node with
    enough has joined, the same deployment brings the refused version up on it."""
    versions = {"1.0.0": ECHO, "1.1.0": {**ECHO, "resources": {"cpus": 20, "labels": {"zone": "b"}}}}
    items = await deployed(gateway, wire(tmp_path / "bucket", versions))
    assert items["1.0.0"]["status"] == "ready"
    assert items["1.1.0"]["status"] == "failed"
    assert "20 CPU, label zone=b. The cluster has: " in items["1.1.0"]["message"]
    assert "16 CPU, no GPU" in items["1.1.0"]["message"]
    labels = {"name": "large", "zone": "b", ACCELERATOR_LABEL: "L4"}
    large = await asyncio.to_thread(ExtraNode, ray_cluster, cpus=24, gpus=1, labels=labels)
    try:
        await until(lambda: "large" in alive())
        items = await deployed(gateway, wire(tmp_path / "bucket", versions))
        assert items["1.1.0"]["status"] == "ready"
        assert node_of("echo-1.1.0-g2") == "large"
    finally:
        await asyncio.to_thread(large.stop)


@pytest.mark.soak
async def test_a_version_whose_node_is_lost_comes_up_on_another(
    ray_cluster: LocalCluster, gateway: RayControlGateway, tmp_path: Path
) -> None:
    """A CPU host is kept off GPU nodes; when the only other node that could hold it is lost (kill -9), it is placed
    anew, on a GPU node. A GPU host goes to that node only to find that its card is not there, and says so."""
    plain = await asyncio.to_thread(ExtraNode, ray_cluster, cpus=24, labels={"name": "plain"})
    labels = {"name": "card", ACCELERATOR_LABEL: "L4"}
    card = await asyncio.to_thread(ExtraNode, ray_cluster, cpus=24, gpus=1, labels=labels)
    try:
        await until(lambda: {"plain", "card"} <= set(alive()))
        versions = {"1.0.0": {**ECHO, "resources": {"cpus": 20}}}
        assert (await deployed(gateway, wire(tmp_path / "bucket", versions)))["1.0.0"]["status"] == "ready"
        assert node_of("echo-1.0.0") == "plain"
        await asyncio.to_thread(plain.kill)
        await until(lambda: node_of("echo-1.0.0") == "card", seconds=150)
        versions["1.1.0"] = {**ECHO, "resources": {"cpus": 0.1, "vram_gb": 4}}
        items = await deployed(gateway, wire(tmp_path / "bucket", versions))
        assert "this version asks for a GPU, but torch sees none on its node" in items["1.1.0"]["message"]
    finally:
        await asyncio.to_thread(plain.stop)
        await asyncio.to_thread(card.stop)
