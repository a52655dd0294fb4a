"""Fakes of serving's ports, and short ways to make tables, for tests without Ray."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.config.models import ModelConfig, RouteConfig, Signature, VersionConfig
from cluster.errors import HeadraceError, Unavailable
from cluster.names import app_name
from serve_apps.protocol import InferRequest, InferResult, StreamChunk
from serve_apps.table import ApiKey, ModelEntry, RoutingTable, VersionEntry

__all__ = ["FakeHost", "FakeHosts", "api_key", "echo", "model_entry", "table_of"]

Respond = Callable[[InferRequest], InferResult]


def echo(request: InferRequest) -> InferResult:
    """Every input comes back as an output of the same name."""
    return InferResult(outputs=dict(request.inputs), batch_size=request.rows)


@dataclass
class FakeHost:
    """A host (`HostPort`) that answers by a function, can fail, be slow, stream given pieces, and remembers its
    calls."""

    respond: Respond = echo
    pieces: Sequence[str | StreamChunk] = ("Hello", " ", "world")
    fail_hops: int = 0
    """So many hops, and streams, raise `Unavailable` before it works."""
    error: HeadraceError | None = None
    """Every request gets this error in its result, and every stream as its first chunk."""
    break_after: int | None = None
    """Streams break with `Unavailable` after so many pieces."""
    gate: asyncio.Event | None = None
    """Calls wait for it."""
    gone: bool = False
    """No replica runs."""
    calls: list[list[InferRequest]] = field(default_factory=list)
    streamed: list[InferRequest] = field(default_factory=list)
    cancelled: int = 0

    @property
    def streams(self) -> int:
        """How many streams were asked for."""
        return len(self.streamed)

    @property
    def requests(self) -> list[InferRequest]:
        """All requests, over all hops."""
        return [request for call in self.calls for request in call]

    def reachable(self) -> bool:
        return not self.gone

    async def infer(self, requests: Sequence[InferRequest]) -> list[InferResult]:
        self.calls.append(list(requests))
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail_hops > 0:
            self.fail_hops -= 1
            raise Unavailable("no replica answers")
        if self.error is not None:
            return [InferResult(error=self.error) for _ in requests]
        return [self.respond(request) for request in requests]

    async def stream(self, request: InferRequest) -> AsyncIterator[StreamChunk]:
        self.streamed.append(request)
        finished = False
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_hops > 0:
                self.fail_hops -= 1
                finished = True
                raise Unavailable("no replica answers")
            if self.error is not None:
                finished = True
                yield StreamChunk(error=self.error)
                return
            for index, piece in enumerate(self.pieces):
                if self.break_after is not None and index >= self.break_after:
                    finished = True
                    raise Unavailable("the replica died")
                await asyncio.sleep(0)
                yield StreamChunk(text=piece) if isinstance(piece, str) else piece
            finished = True
            usage = {"prompt_tokens": 3, "completion_tokens": len(self.pieces)}
            yield StreamChunk(finish_reason="stop", usage=usage)
        finally:
            if not finished:
                self.cancelled += 1


@dataclass
class FakeHosts:
    """Hosts by application name (`HostProvider`); an unknown application gives a host that is unreachable."""

    by_app: dict[str, FakeHost] = field(default_factory=dict)

    def host(self, app: str) -> FakeHost:
        found = self.by_app.get(app)
        return found if found is not None else FakeHost(fail_hops=1 << 30, error=Unavailable(f"no application {app}"))


def api_key(name: str, secret: str, role: str = "invoke", expires_at: float | None = None) -> ApiKey:
    """The table's entry for the key whose text is `secret`."""
    return ApiKey(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), role=role, expires_at=expires_at)


def model_entry(
    name: str,
    *,
    weights: Mapping[str, float] | None = None,
    task: str = "generic",
    signature: Signature | None = None,
    config: Mapping[str, Any] | None = None,
    entries: Mapping[str, Mapping[str, Any]] | None = None,
    mirror: Mapping[str, float] | None = None,
    experiment: str = "",
) -> ModelEntry:
    """A model with one deployed version for each weight. `config`: further keys of `ModelConfig`; `entries`: further
    fields of single `VersionEntry`s, by version."""
    weights = weights or {"1.0.0": 100.0}
    names = [*weights, *(v for v in (entries or {}) if v not in weights)]
    version = VersionConfig.model_validate({"provider": "python", "class": "tests:Model"})
    settings = ModelConfig.model_validate(
        {
            "task": task,
            "versions": {v: version.model_dump(by_alias=True, exclude_none=True) for v in names},
            **(config or {}),
        }
    )
    versions = {}
    for v in names:
        fields: dict[str, Any] = {
            "version": v,
            "app": app_name(name, v),
            "signature": signature if signature is not None else settings.signature_of(v),
            "timeout_s": 60.0,
            "streaming": task == "chat",
        }
        fields.update((entries or {}).get(v, {}))
        versions[v] = VersionEntry(**fields)
    return ModelEntry(
        name=name,
        config=settings,
        versions=versions,
        weights=dict(weights),
        mirror=dict(mirror or {}),
        experiment=experiment,
    )


def table_of(
    *models: ModelEntry,
    routes: Mapping[str, Mapping[str, Any]] | None = None,
    keys: Sequence[ApiKey] = (),
    revision: int = 1,
    **fields: Any,
) -> RoutingTable:
    """A table of these models and routes; authentication is on exactly when there are keys."""
    return RoutingTable(
        revision=revision,
        models={model.name: model for model in models},
        routes={name: RouteConfig.model_validate(route) for name, route in (routes or {}).items()},
        keys={key.sha256: key for key in keys},
        auth_enabled=fields.pop("auth_enabled", bool(keys)),
        **fields,
    )
