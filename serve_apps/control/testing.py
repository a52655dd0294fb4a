"""A deployer and a journal in memory, for tests: applications start when told, and hosts answer by a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import Fenced, HeadraceError, NotFound, StorageError
from serve_apps.control.ports import AppSpec, AppStatus
from serve_apps.protocol import InferRequest, InferResult

__all__ = ["FakeDeployer", "MemoryJournal"]


@dataclass
class MemoryJournal:
    """Implements `Journal` over two lists that a second owner can be made from."""

    records: list[bytes] = field(default_factory=list)
    snapshots: list[bytes] = field(default_factory=list)
    fenced: bool = False
    broken: StorageError | None = None
    epoch: int = 1

    async def check_owner(self) -> None:
        if self.fenced:
            raise Fenced("another owner has written")

    async def append(self, records: Sequence[bytes]) -> int:
        if self.fenced:
            raise Fenced("another owner has written")
        if self.broken is not None:
            raise self.broken
        self.records += records
        return len(self.records)

    async def snapshot(self, data: bytes) -> None:
        if self.fenced:
            raise Fenced("another owner has written")
        self.snapshots.append(data)
        self.records.clear()

    async def close(self) -> None:
        return None


def _echo(app: str, request: InferRequest) -> InferResult:
    return InferResult(outputs=dict(request.inputs))


@dataclass
class FakeDeployer:
    """Implements `Deployer`. `auto`: applications run as soon as they are asked for; otherwise `set_state` says when.

    `refuse[model version]` is raised by `deploy`; `answer` computes what a host says. `deployed` and `deleted` hold
    the applications' names in the order in which they were asked for.
    """

    auto: bool = True
    answer: Callable[[str, InferRequest], InferResult] = _echo
    refuse: dict[str, HeadraceError] = field(default_factory=dict)
    specs: dict[str, AppSpec] = field(default_factory=dict)
    apps: dict[str, AppStatus] = field(default_factory=dict)
    deployed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    calls: list[tuple[str, InferRequest]] = field(default_factory=list)
    down: HeadraceError | None = None
    refitted: list[str] = field(default_factory=list)
    hindrance: str = ""
    signatures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the classes behind the applications declare."""

    async def deploy(self, spec: AppSpec) -> None:
        error = self.refuse.get(f"{spec.model} {spec.version}")
        if error is not None:
            raise error
        self.deployed.append(spec.app)
        self.specs[spec.app] = spec
        self.apps[spec.app] = AppStatus(state="running" if self.auto else "starting", running=int(self.auto), wanted=1)

    async def refit(self, spec: AppSpec) -> str:
        self.refitted.append(spec.app)
        return self.hindrance

    def set_state(self, app: str, status: AppStatus) -> None:
        self.apps[app] = status

    async def statuses(self) -> Mapping[str, AppStatus]:
        if self.down is not None:
            raise self.down
        return {name: replace(status) for name, status in self.apps.items()}

    async def delete(self, app: str) -> None:
        self.deleted.append(app)
        self.apps.pop(app, None)

    async def describe(self, app: str, *, timeout_s: float) -> Mapping[str, Any]:
        return {"signature": self.signatures.get(app), "streaming": False}

    async def infer(self, app: str, requests: Sequence[InferRequest], *, timeout_s: float) -> list[InferResult]:
        if app not in self.apps:
            raise NotFound(f"no application {app}")
        self.calls += [(app, request) for request in requests]
        return [self.answer(app, request) for request in requests]
