"""Starts the run-store actors, one per shard, or finds those that run. For a process connected to the cluster."""

from __future__ import annotations

from typing import Any

from cluster.config.wire import from_wire
from cluster.errors import HeadraceError, Unavailable
from cluster.layout import Layouts
from cluster.names import NAMESPACE, run_store_actor
from cluster.ray_runtime import driver_flags

__all__ = ["ensure_run_stores"]


def ensure_run_stores(config_wire: dict[str, Any], *, timeout_s: float = 120.0) -> list[Any]:
    """Handles of all shards' actors, once each has recovered. Idempotent; a running one takes over a changed config.

    Shards that `state.shards` does not count any more go on with the runs that they hold; new ones get the workflows of
    the others. `config_wire` is `cluster.config.wire.to_wire(config)`. Raises what opening the bucket or the log raised
    (a corrupt object by name, an unsafe bucket, another format), or `Unavailable` after `timeout_s`.
    """
    from ray.exceptions import GetTimeoutError, RayActorError

    try:
        actors = [_actor(config_wire, shard) for shard in range(from_wire(config_wire).state.shards)]
        _recovered(actors, config_wire, timeout_s)
        layouts = Layouts.from_wire(_ask(actors[0], "layouts", timeout_s=timeout_s))
        former = [_actor(config_wire, shard) for shard in range(len(actors), layouts.total)]
        _recovered(former, config_wire, timeout_s)
        actors += former
        _share_workflows(actors, timeout_s)
    except GetTimeoutError:
        raise Unavailable(f"the run stores did not start within {timeout_s:g} s: see their logs in Ray") from None
    except RayActorError as error:
        raise Unavailable(f"a run store could not start: {error}") from error
    return actors


def _actor(config_wire: dict[str, Any], shard: int) -> Any:
    import ray

    from pipelines.run_store.actor import RunStoreActor

    return (
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
    )


def _recovered(actors: list[Any], config_wire: dict[str, Any], timeout_s: float) -> None:
    import ray

    ray.get([actor.adopt.remote(config_wire) for actor in actors], timeout=timeout_s)
    for answer in ray.get([actor.ping.remote() for actor in actors], timeout=timeout_s):
        _value(answer)


def _share_workflows(actors: list[Any], timeout_s: float) -> None:
    """Those of shard 0 to the shards that lack some: each shard runs its runs by definitions of its own."""
    names = [{row["name"] for row in _ask(actor, "workflows", timeout_s=timeout_s)} for actor in actors]
    lacking = [actor for actor, known in zip(actors, names, strict=True) if names[0] - known]
    if lacking:
        definitions = _ask(actors[0], "definitions", timeout_s=timeout_s)
        for actor in lacking:
            _ask(actor, "take_definitions", definitions, timeout_s=timeout_s)


def _ask(actor: Any, method: str, *args: Any, timeout_s: float) -> Any:
    import ray

    return _value(ray.get(actor.call.remote(method, args), timeout=timeout_s))


def _value(answer: tuple[str, Any]) -> Any:
    kind, value = answer
    if kind == "error":
        assert isinstance(value, HeadraceError)
        raise value
    return value
