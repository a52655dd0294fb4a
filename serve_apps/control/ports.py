"""What the control plane needs from outside: a durable log and somebody who runs applications. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cluster.config.models import Signature, VersionConfig
from serve_apps.protocol import InferRequest, InferResult

__all__ = ["AppSpec", "AppStatus", "Deployer", "Journal"]


class Journal(Protocol):
    """The durable log (`cluster.log.DurableLog`), opened already."""

    @property
    def epoch(self) -> int:
        """Higher than that of every owner before."""
        ...

    async def check_owner(self) -> None:
        """Raises `Fenced` when another owner has taken over, `StorageUnavailable` when that cannot be known."""
        ...

    async def append(self, records: Sequence[bytes]) -> object:
        """Return once all records are durable, however long the bucket is away. Raises `Fenced` when another owner has
        taken over, or another `StorageError` when the log can write no more."""
        ...

    async def snapshot(self, data: bytes) -> None:
        """Replace everything appended so far by `data`."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """One application to run: a host for one version of a model."""

    app: str
    model: str
    version: str
    task: str
    config: VersionConfig
    signature: Signature | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatus:
    """What the cluster says about an application. `running` and `wanted` count replicas."""

    state: Literal["starting", "running", "failed", "deleting", "unhealthy"]
    message: str = ""
    running: int = 0
    wanted: int = 0


class Deployer(Protocol):
    """Runs and removes applications. One call never touches another application."""

    async def deploy(self, spec: AppSpec) -> None:
        """Ask for the application; `statuses` says when it runs. Raises `HeadraceError` with a readable reason when
        it can never run (resources that the cluster does not have, a class that cannot be imported)."""
        ...

    async def refit(self, spec: AppSpec) -> str:
        """Look again at an application that has fewer replicas than it should: where the nodes that it was placed on
        are gone, it is placed on others. What hinders it, in a sentence; empty when nothing is known to."""
        ...

    async def statuses(self) -> Mapping[str, AppStatus]:
        """All applications of the cluster by name. Raises `Unavailable` when the cluster does not answer."""
        ...

    async def delete(self, app: str) -> None:
        """Ask for the application's removal, after its requests have ended. An unknown name is no error."""
        ...

    async def describe(self, app: str, *, timeout_s: float) -> Mapping[str, Any]:
        """What a running host says about itself: `{signature: {…} | None, streaming: bool, …}`."""
        ...

    async def infer(self, app: str, requests: Sequence[InferRequest], *, timeout_s: float) -> list[InferResult]:
        """Call a host directly, past router and weights (golden requests, warm-ups)."""
        ...
