"""Starts Serve with the router's host and port, and deploys the router. For a process that is connected to the
cluster."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from cluster.config.models import RouterConfig
from cluster.errors import Unavailable
from cluster.names import ROUTER_APP
from serve_apps.router.mark import router_mark
from serve_apps.table import RoutingTable

__all__ = ["deploy_router", "start_serve"]

_STARTS = 3
_ASK_S = 5.0


def start_serve(router: RouterConfig) -> None:
    """Start Serve's controller and its HTTP proxy on `router.host:router.port`.

    Must come before anything else uses Serve in this cluster: whoever starts Serve first decides about host and port.
    """
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.config import HTTPOptions, ProxyLocation

    for left in reversed(range(_STARTS)):
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=router.host, port=router.port),
            )
            return
        except RayActorError as error:
            # On a busy machine Serve's controller kills a proxy that is not ready in time, and starts another.
            if not left:
                raise Unavailable(f"Serve's HTTP proxy did not start: {str(error).splitlines()[0]}") from error


def _answers(mark: str) -> bool:
    """Whether the router runs and was made from the same."""
    from ray import serve

    app = serve.status().applications.get(ROUTER_APP)
    if app is None or app.status != "RUNNING":
        return False
    try:
        asked = serve.get_app_handle(ROUTER_APP).mark.remote()
        return bool(asked.result(timeout_s=_ASK_S) == mark)
    except Exception:  # one that does not answer, whatever the reason, is replaced
        return False


def deploy_router(
    config_wire: dict[str, Any], *, table: RoutingTable | None = None, env_vars: dict[str, str] | None = None
) -> Any:
    """Deploy the router as the application at `/` and wait until it answers; returns its handle. Idempotent: one that
    runs and was made from the same stays, since Serve would replace it and drain the old one for half a minute.

    `config_wire` is `cluster.config.wire.to_wire(config)`. With `table` the router works from it alone, without a
    control plane. `env_vars` reach the router's process (`HEADRACE_SECRETS_FILE`, for example).
    """
    from ray import serve

    from cluster.config.wire import from_wire
    from serve_apps.router.deployment import RouterIngress
    from serve_apps.router.fast_lane import CALLBACK_VARIABLE

    router = from_wire(config_wire).router
    start_serve(router)
    mark = router_mark(config_wire, env_vars or {}, version=version("headrace"))
    if table is None and _answers(mark):
        return serve.get_app_handle(ROUTER_APP)
    deployment = serve.deployment(serve.ingress()(RouterIngress)).options(
        name="router",
        num_replicas=router.replicas,
        # Requests wait at hosts, by priority and deadline, and not in front of the router.
        max_ongoing_requests=10_000,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=10.0,
        # A line per request costs as much as deciding about it; metrics and the table of answers say more.
        logging_config={"enable_access_log": False},
        ray_actor_options={
            "num_cpus": router.cpus,
            "runtime_env": {"env_vars": {**CALLBACK_VARIABLE, **(env_vars or {})}},
        },
    )
    return serve.run(deployment.bind(config_wire, table, mark), name=ROUTER_APP, route_prefix="/", blocking=False)
