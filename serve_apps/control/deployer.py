"""The deployer over Ray Serve: one application per version, started and removed without touching the others."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.models import RouterConfig
from cluster.errors import DeadlineExceeded, HeadraceError, InvalidConfig, Unavailable
from cluster.placement import could_take, place
from serve_apps.control.ports import AppSpec, AppStatus
from serve_apps.protocol import InferRequest, InferResult

__all__ = ["ServeDeployer"]

_log = logging.getLogger(__name__)

_STATES: Mapping[str, str] = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "starting",
    "RUNNING": "running",
    "DEPLOY_FAILED": "failed",
    "UNHEALTHY": "unhealthy",
    "DELETING": "deleting",
}


class ServeDeployer:
    """Implements `Deployer`. Serve's calls block, so each runs in a thread; deployments go one after another.

    `router` says on which host and port Serve listens: whoever deploys first starts Serve, and after the whole cluster
    was replaced that may be this process, which brings its versions back.
    """

    def __init__(self, router: RouterConfig) -> None:
        self._router = router
        self._serve_started = False
        self._one_at_a_time = threading.Lock()
        self._handles: dict[str, Any] = {}

    async def deploy(self, spec: AppSpec) -> None:
        await asyncio.to_thread(self._deploy, spec)

    def _deploy(self, spec: AppSpec) -> None:
        from ray import serve

        from serve_apps.hosts.app import build_app
        from serve_apps.router.bootstrap import start_serve

        with self._one_at_a_time:
            try:
                application = build_app(
                    app=spec.app,
                    model=spec.model,
                    version=spec.version,
                    task=spec.task,
                    config=spec.config,
                    signature=spec.signature,
                )
            except HeadraceError:
                raise
            except Exception as error:
                raise InvalidConfig(f"{spec.model} {spec.version}: {type(error).__name__}: {error}") from error
            try:
                if not self._serve_started:
                    start_serve(self._router)
                    self._serve_started = True
                serve.run_many(
                    [serve.RunTarget(target=application, name=spec.app, route_prefix=None)],
                    wait_for_applications_running=False,
                )
            except HeadraceError:
                raise
            except Exception as error:
                raise Unavailable(f"Serve refused {spec.app}: {_shorten(str(error))}") from error

    async def refit(self, spec: AppSpec) -> str:
        return await asyncio.to_thread(self._refit, spec)

    def _refit(self, spec: AppSpec) -> str:
        """Serve keeps the options that an application was deployed with. Where no node can take those any more, and
        other options would do, it is deployed again under its name: none of its replicas can be running."""
        from ray.serve.context import _get_global_client

        from serve_apps.hosts.app import cluster_nodes

        try:
            with self._one_at_a_time:
                details = _get_global_client().get_serve_details()
            (deployment,) = details["applications"][spec.app]["deployments"].values()
            options = deployment["deployment_config"]["ray_actor_options"]
            nodes = cluster_nodes()
        except Exception as error:
            _log.info("%s could not be looked at: %s", spec.app, error)
            return ""
        if not nodes or could_take(options, nodes):
            return ""
        try:
            placement = place(spec.config.resources, nodes)
            _log.warning("%s: its nodes are gone, placing it anew (%s)", spec.app, placement.reason)
            self._deploy(spec)
        except HeadraceError as error:
            return error.message
        return f"its nodes are gone: it is being placed anew ({placement.reason})"

    async def statuses(self) -> Mapping[str, AppStatus]:
        return await asyncio.to_thread(self._statuses)

    def _statuses(self) -> dict[str, AppStatus]:
        from ray import serve

        try:
            with self._one_at_a_time:
                overview = serve.status()
        except Exception as error:
            raise Unavailable(f"Serve does not answer: {_shorten(str(error))}") from error
        found = {}
        for name, app in overview.applications.items():
            counts = [deployment.replica_states for deployment in app.deployments.values()]
            running = sum(int(states.get("RUNNING", 0)) for states in counts)
            wanted = sum(sum(int(number) for number in states.values()) for states in counts)
            messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
            text = next((message for message in reversed(messages) if message), "")
            state = _STATES.get(app.status.value, "starting")
            if state == "starting" and no_use_trying_again(text):
                state = "failed"  # Serve would try twice more
            found[name] = AppStatus(
                state=state,  # type: ignore[arg-type]
                message=reason_of(text),
                running=running,
                wanted=wanted,
            )
        return found

    async def delete(self, app: str) -> None:
        self._handles.pop(app, None)
        await asyncio.to_thread(self._delete, app)

    def _delete(self, app: str) -> None:
        from ray import serve

        try:
            with self._one_at_a_time:
                serve.delete(app, _blocking=False)
        except Exception as error:
            raise Unavailable(f"Serve could not delete {app}: {_shorten(str(error))}") from error

    async def infer(self, app: str, requests: Sequence[InferRequest], *, timeout_s: float) -> list[InferResult]:
        results: list[InferResult] = await self._ask(app, "infer", timeout_s, list(requests))
        return results

    async def describe(self, app: str, *, timeout_s: float) -> Mapping[str, Any]:
        found: dict[str, Any] = await self._ask(app, "describe", timeout_s)
        return found

    async def _ask(self, app: str, method: str, timeout_s: float, *args: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                handle = self._handles.get(app)
                if handle is None:
                    handle = self._handles[app] = await asyncio.to_thread(self._handle, app)
                return await getattr(handle, method).remote(*args)
        except TimeoutError:
            raise DeadlineExceeded(f"{app} did not answer within {timeout_s:g} s") from None
        except HeadraceError:
            raise
        except Exception as error:
            self._handles.pop(app, None)
            raise Unavailable(f"{app} cannot be reached: {_shorten(str(error))}") from error

    def _handle(self, app: str) -> Any:
        from ray import serve

        with self._one_at_a_time:
            return serve.get_app_handle(app)


_TRACE_END = re.compile(r"^(?:(?:\w+\.)+[A-Z]\w*|[A-Z]\w*(?:Error|Exception|Exit|Interrupt))(?:: .*)?$", re.M)
"""The last line of a traceback: a dotted class, or a builtin one."""
_OURS = re.compile(r"^(?:cluster\.errors\.\w+|ray\.exceptions\.RayTaskError\(\w+\)): ")


_START_FAILED = "failed to start"
_FINAL = ("InvalidConfig", "Unprocessable", "NotFound")
_NO_ROOM = re.compile(
    r"taken more than \S+ to be scheduled.*?required for each replica: (\{.*?\}), total resources available: (\{.*?\})",
    re.S,
)


def no_use_trying_again(message: str) -> bool:
    """Whether a Serve message tells of a start that failed by what is configured, which another try will not change."""
    named = re.findall(r"^cluster\.errors\.(\w+): |^ray\.exceptions\.RayTaskError\((\w+)\): ", message, re.M)
    return _START_FAILED in message and bool(named) and (named[-1][0] or named[-1][1]) in _FINAL


def reason_of(message: str) -> str:
    """The sentence that matters in a Serve message: the last exception's line if it holds a traceback; in words that do
    not name Serve's own parts if it only takes long.

    The class of one of our own errors is left out: its message is a whole sentence.
    """
    if _START_FAILED in message and "ActorDiedError" in message:
        return "the host's process ended while it loaded: out of memory, a crash or an exit (its log may say more)"
    if "to initialize" in message and "taken more than" in message:
        return "it is still loading or warming up"
    if no_room := _NO_ROOM.search(message):
        return f"it waits for room in the cluster: it needs {no_room[1]}, of which {no_room[2]} are free"
    lines = [line for line in _TRACE_END.findall(message) if "Traceback (most recent call last)" not in line]
    return _shorten(_OURS.sub("", lines[-1]) if lines else message)


def _shorten(text: str, limit: int = 800) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
