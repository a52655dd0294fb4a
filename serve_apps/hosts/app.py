"""The Serve application of one model version: a thin shell over `Host`, and what it asks of Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from cluster.config.models import Signature, VersionConfig
from cluster.errors import InvalidConfig
from cluster.names import app_name
from cluster.placement import Node, Placement, place, static_options
from serve_apps.protocol import InferRequest, InferResult, StreamChunk

__all__ = ["build_app", "cluster_nodes", "deployment_options", "version_wire"]

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
"""Keeps glibc from handing activations back to the system after every call: batches of images cost half as much."""
_OPENAI_ONGOING = 512


def build_app(
    *,
    model: str,
    version: str,
    config: VersionConfig,
    task: str = "generic",
    signature: Signature | None = None,
    app: str | None = None,
    nodes: Sequence[Node] | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """The application to give to `serve.run(…, name=app, route_prefix=None)`; its one deployment is `Host`.

    `nodes` is the cluster (default: asked from Ray when this process is connected). `env` goes to the host's process.
    Raises `Unprocessable` when no node can ever take it, `InvalidConfig` when the configuration contradicts itself.
    """
    from ray import serve

    if nodes is None:
        nodes = cluster_nodes()
    placement = place(config.resources, nodes) if nodes else None
    name = app or app_name(model, version)
    options = deployment_options(config, placement, env=env)
    deployment: Any = serve.deployment(_host_class(), name="Host", **options)
    return deployment.bind(
        name,
        model,
        version,
        version_wire(config),
        task,
        signature.model_dump(mode="json") if signature is not None else None,
    )


def version_wire(config: VersionConfig) -> dict[str, Any]:
    """The version as JSON for the host's constructor. Secrets travel by name only: a written-out key is refused."""
    wire = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    key = wire.get("api_key")
    if isinstance(key, str):
        raise InvalidConfig("api_key: a literal secret cannot be sent to a host; refer to a variable: ${NAME}")
    if isinstance(key, dict):
        wire["api_key"] = {"variable": key["variable"]}
    return wire


def deployment_options(
    config: VersionConfig, placement: Placement | None, *, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Arguments of `serve.deployment`: replicas, actor options, and how many requests may wait in a replica.

    Enough requests are let in to fill the batch queue, since the queue (which knows priorities and deadlines) is the
    place to wait, not Serve's router (which knows neither).
    """
    batching = config.batching
    ongoing = max(64, min(batching.queue, 4096) + batching.max_batch_size)
    if config.provider == "openai_compatible":
        ongoing = max(ongoing, _OPENAI_ONGOING)
    options: dict[str, Any] = {
        "max_ongoing_requests": ongoing,
        "ray_actor_options": {
            **(placement.options if placement is not None else static_options(config.resources)),
            "runtime_env": {"env_vars": {**host_env(config), **(env or {})}},
        },
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 25,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    if config.autoscaling is None:
        options["num_replicas"] = config.replicas
        return options
    scaling = config.autoscaling
    options["autoscaling_config"] = {
        "min_replicas": scaling.min_replicas,
        "initial_replicas": max(scaling.min_replicas, min(config.replicas, scaling.max_replicas)),
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_ongoing_requests,
        "downscale_delay_s": scaling.idle_s,
        "upscale_delay_s": min(2.0, scaling.idle_s),
        # Serve decides by the mean over this time: with its 30 s no version would be idle sooner. It has to be longer
        # than the 10 s between two reports.
        "look_back_period_s": min(30.0, max(scaling.idle_s, 11.0)),
    }
    return options


def host_env(config: VersionConfig) -> dict[str, str]:
    """Environment of the host's process: allocator and threads, so that batches pay and hosts share the cores."""
    threads = str(threads_of(config))
    return {**_MALLOC, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def threads_of(config: VersionConfig) -> int:
    """`cpu_threads`, else the whole CPUs that the version asked for; at least one."""
    return config.cpu_threads or max(1, int(config.resources.cpus))


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster this process is connected to, and the kinds of node that its autoscaler may add; empty
    when it is not connected."""
    import ray

    if not ray.is_initialized():
        return []
    return [*_addable_nodes(), *_present_nodes()]


def _addable_nodes() -> list[Node]:
    """What an autoscaler (KubeRay's, or Ray's own) has reported to Ray that it may start; none without one."""
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [
        Node(id=group.name or "a group", resources={k: float(v) for k, v in group.resources.items()}, addable=True)
        for group in groups
        if group.max_count != 0
    ]


def _present_nodes() -> list[Node]:
    import ray

    return [
        Node(
            id=str(node["NodeID"]),
            resources=dict(node.get("Resources") or {}),
            labels={str(k): str(v) for k, v in (node.get("Labels") or {}).items()},
            alive=bool(node.get("Alive")),
        )
        for node in ray.nodes()
    ]


def _host_class() -> type:
    """The deployment class, made late so that importing this module needs no Serve."""

    class HostDeployment:
        """What Serve calls. Every method is one line over `serve_apps.hosts.host.Host`."""

        async def __init__(  # type: ignore[misc]
            self,
            app: str,
            model: str,
            version: str,
            config: dict[str, Any],
            task: str,
            signature: dict[str, Any] | None,
        ) -> None:
            from serve_apps.hosts.assemble import assemble

            self._host = assemble(
                model=model,
                version=version,
                config=VersionConfig.model_validate(config),
                task=task,
                signature=Signature.model_validate(signature) if signature is not None else None,
            )
            await self._host.start()

        async def infer(self, requests: Sequence[InferRequest]) -> list[InferResult]:
            return await self._host.infer(requests)

        async def stream(self, request: InferRequest) -> AsyncIterator[StreamChunk]:
            async with aclosing(self._host.stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

        async def describe(self) -> dict[str, Any]:
            return self._host.describe()

        async def stats(self) -> dict[str, Any]:
            return self._host.stats()

        async def check_health(self) -> None:
            self._host.check_health()

        async def __del__(self) -> None:
            host = getattr(self, "_host", None)
            if host is not None:
                await host.stop()

    return HostDeployment
