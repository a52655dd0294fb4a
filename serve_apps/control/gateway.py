"""How others reach the control plane: a port, and its Ray form that outlives the actor's restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from cluster.errors import HeadraceError, Unavailable
from cluster.names import CONTROL_PLANE, NAMESPACE
from serve_apps.table import RoutingTable

__all__ = ["ControlGateway", "RayControlGateway"]


class ControlGateway(Protocol):
    """`call` for operators, `watch` and `report` for routers. `Unavailable` while the actor is away."""

    async def call(self, method: str, payload: Mapping[str, Any]) -> dict[str, Any]: ...

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None: ...

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None: ...


class RayControlGateway:
    """Finds the actor by name, and anew when it was replaced. A call is sent once: what failed may have happened."""

    def __init__(self, *, timeout_s: float = 60.0):
        self._timeout_s = timeout_s
        self._handle: Any = None

    async def call(self, method: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask("call", self._timeout_s, method, dict(payload))
        return answer

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None:
        table: RoutingTable | None = await self._ask("watch", timeout_s + 10.0, revision, timeout_s)
        return table

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None:
        await self._ask("report", 10.0, router_id, dict(stats))

    async def _ask(self, name: str, timeout_s: float, *args: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            async with asyncio.timeout(timeout_s):
                if self._handle is None:
                    self._handle = await asyncio.to_thread(ray.get_actor, CONTROL_PLANE, NAMESPACE)
                return await getattr(self._handle, name).remote(*args)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HeadraceError):
                raise cause from None
            raise
        except (RayActorError, ValueError) as error:
            self._handle = None
            raise Unavailable(
                "the control plane is starting anew: try again in a few seconds", retry_after_s=2.0
            ) from error
        except TimeoutError:
            raise Unavailable(f"the control plane did not answer within {timeout_s:g} s", retry_after_s=2.0) from None
