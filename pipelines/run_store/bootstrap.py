"""Starts the run-store actors, one per shard, or finds those that run. For a process connected to the cluster."""

from __future__ import annotations

from typing import Any

from cluster.config.wire import from_wire
from cluster.errors import HeadraceError, Unavailable
from cluster.names import NAMESPACE, run_store_actor
from cluster.ray_runtime import driver_flags

__all__ = ["ensure_run_stores"]


def ensure_run_stores(config_wire: dict[str, Any], *, timeout_s: float = 120.0) -> list[Any]:
    """Handles of all shards' actors, once each has recovered. Idempotent; a running one takes over a changed config.

    `config_wire` is `cluster.config.wire.to_wire(config)`. Raises what opening the bucket or the log raised (a corrupt
    object by name, an unsafe bucket, another format), or `Unavailable` after `timeout_s`.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    from pipelines.run_store.actor import RunStoreActor

    shards = from_wire(config_wire).state.shards
    actors = [
        ray.remote(RunStoreActor)
        .options(
            name=run_store_actor(shard),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=10_000,
            num_cpus=0,
            runtime_env={"env_vars": driver_flags()},
        )
        .remote(config_wire, shard)
        for shard in range(shards)
    ]
    try:
        ray.get([actor.adopt.remote(config_wire) for actor in actors], timeout=timeout_s)
        answers = ray.get([actor.ping.remote() for actor in actors], timeout=timeout_s)
    except GetTimeoutError:
        raise Unavailable(f"the run stores did not start within {timeout_s:g} s: see their logs in Ray") from None
    except RayActorError as error:
        raise Unavailable(f"a run store could not start: {error}") from error
    for kind, value in answers:
        if kind == "error":
            assert isinstance(value, HeadraceError)
            raise value
    return actors
