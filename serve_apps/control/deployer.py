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
            found[name] = AppStatus(
                state=_STATES.get(app.status.value, "starting"),  # type: ignore[arg-type]
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


def reason_of(message: str) -> str:
    """The sentence that matters in a Serve message: the last exception's line if it holds a traceback.

    The class of one of our own errors is left out: its message is a whole sentence.
    """
    lines = [line for line in _TRACE_END.findall(message) if "Traceback (most recent call last)" not in line]
    return _shorten(_OURS.sub("", lines[-1]) if lines else message)


def _shorten(text: str, limit: int = 800) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
