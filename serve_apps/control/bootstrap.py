"""Starts the control-plane actor, or finds the one that runs. For a process that is connected to the cluster."""

from __future__ import annotations

from typing import Any

from cluster.errors import HeadraceError, Unavailable
from cluster.names import CONTROL_PLANE, NAMESPACE
from cluster.ray_runtime import driver_flags

__all__ = ["ensure_control_plane"]


def ensure_control_plane(config_wire: dict[str, Any], *, timeout_s: float = 120.0) -> Any:
    """The handle of the control-plane actor, once it has recovered its state. Idempotent.

    `config_wire` is `cluster.config.wire.to_wire(config)`; a running control plane takes over its settings (routes,
    auth, limits), not its models: those are deployed by `call("deploy", …)`. Raises what opening the bucket raised,
    or `Unavailable` after `timeout_s`.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    from serve_apps.control.actor import ControlActor

    actor = (
        ray.remote(ControlActor)
        .options(
            name=CONTROL_PLANE,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=10_000,
            num_cpus=0,
            runtime_env={"env_vars": driver_flags()},
        )
        .remote(config_wire)
    )
    try:
        ray.get(actor.ping.remote(), timeout=timeout_s)
        ray.get(actor.adopt.remote(config_wire), timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, HeadraceError):
            raise error.cause from None
        raise
    except GetTimeoutError:
        raise Unavailable(f"the control plane did not start within {timeout_s:g} s: see its log in Ray") from None
    except RayActorError as error:
        raise Unavailable(f"the control plane could not start: {error}") from error
    return actor
