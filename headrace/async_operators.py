"""What operators ask of a cluster: each method of the asynchronous client is one call of `headrace.admin`.

`headrace/operators.py`, the same for the synchronous client, is made from this file by `scripts/sync_client.py`
(`make format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from headrace import admin
from headrace.shells import AsyncShell

__all__ = ["AsyncOperators"]


class AsyncOperators(AsyncShell):
    """The methods of a client that need the role `operate`."""

    async def models(self) -> list[dict[str, Any]]:
        """All models with their versions, weights and states."""
        return list((await self._do(admin.models()))["models"])

    async def model(self, name: str) -> dict[str, Any]:
        """One model with its versions, weights and states."""
        return dict(await self._do(admin.model(name)))

    async def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `deploy` with the same request would change. `request`: see `headrace.deployment.deploy_request`."""
        return dict(await self._do(admin.plan(request)))

    async def deploy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Record what shall run; returns at once, `deployment` tells how it goes."""
        return dict(await self._do(admin.deploy(request)))

    async def deployment(self, identifier: str) -> dict[str, Any]:
        """How a deployment goes: `{id, state: running|done|failed, seconds, items}`."""
        return dict(await self._do(admin.deployment(identifier)))

    async def deployments(self) -> list[dict[str, Any]]:
        """Recent deployments, newest first."""
        return list((await self._do(admin.deployments()))["deployments"])

    async def retire(self, model: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
        """Take down one version, or with none the whole model. Refused while it gets traffic, unless `force`."""
        return dict(await self._do(admin.retire(model, version, force=force)))

    async def traffic(self, model: str, weights: Mapping[str, float], *, force: bool = False) -> dict[str, Any]:
        """Set the weights by hand; versions not named get 0."""
        return dict(await self._do(admin.traffic(model, weights, force=force)))

    async def status(self) -> dict[str, Any]:
        """What the control plane holds and how it is."""
        return dict(await self._do(admin.status()))

    async def start_release(
        self, model: str, candidate: str, **options: Unpack[admin.ReleaseOptions]
    ) -> dict[str, Any]:
        """Begin to move traffic to `candidate`. `options`: what this release does otherwise than the model's `release:`
        section says (`headrace.admin.ReleaseOptions`)."""
        return dict(await self._do(admin.release_start(model, candidate, options)))

    async def plan_release(self, model: str, candidate: str, **options: Unpack[admin.ReleaseOptions]) -> dict[str, Any]:
        """What `start_release` would begin, with `problems`: why it would be refused. Nothing moves."""
        return dict(await self._do(admin.release_plan(model, candidate, options)))

    async def release_by_id(self, identifier: str) -> dict[str, Any]:
        """One release by its id, ended or not."""
        return dict(await self._do(admin.release_show(identifier)))

    async def release(self, model: str) -> dict[str, Any]:
        """The newest release of a model, with the figures and the decision of now."""
        return dict(await self._do(admin.release_status(model)))

    async def move_release(self, model: str, move: str, *, reason: str = "", force: bool = False) -> dict[str, Any]:
        """`move`: promote, pause, resume or rollback."""
        return dict(await self._do(admin.release_move(model, move, reason=reason, force=force)))

    async def releases(self, model: str | None = None) -> list[dict[str, Any]]:
        """Releases, newest first, each with its history."""
        return list((await self._do(admin.releases(model)))["releases"])

    async def promotions(self) -> list[dict[str, Any]]:
        """Versions that have proved themselves here, so that the next environment may take them."""
        return list((await self._do(admin.promotions()))["promotions"])

    async def record_promotion(self, model: str, version: str, *, reason: str) -> dict[str, Any]:
        """Record that a version proved itself here without a release: a first version has no stable one to be
        compared with. Its golden requests run first."""
        return dict(await self._do(admin.record_promotion(model, version, reason)))

    async def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Begin to collect old runs and unused blobs, as `state.retention` says; with `dry_run` only count them.
        Returns at once; `collection` tells how it goes."""
        return dict(await self._do(admin.gc(dry_run=dry_run)))

    async def collection(self) -> dict[str, Any] | None:
        """The newest collection: `{id, dry_run, state: running|done|failed, started_at, finished_at, error, counts}`"""
        found: dict[str, Any] | None = (await self._do(admin.gc_status()))["collection"]
        return found

    async def breakers(self) -> list[dict[str, Any]]:
        """Circuit breakers that have ever opened: `model:NAME:VERSION` and `http:HOST`."""
        return list((await self._do(admin.breakers()))["breakers"])

    async def reset_breaker(self, target: str) -> dict[str, Any]:
        """Close a breaker now, as `breakers` names it."""
        return dict(await self._do(admin.reset_breaker(target)))

    async def keys(self) -> list[dict[str, Any]]:
        """The API keys by name, role and time; never the keys themselves."""
        return list((await self._do(admin.keys()))["keys"])

    async def create_key(
        self, name: str, *, role: str = "invoke", expires_in_s: float | None = None, replace: bool = False
    ) -> dict[str, Any]:
        """A new API key. The key itself is in this answer and in no other."""
        call = admin.create_key(name, role=role, expires_in_s=expires_in_s, replace=replace)
        return dict(await self._do(call))

    async def revoke_key(self, name: str) -> Any:
        """End an API key; routers refuse it once they have the next table."""
        return await self._do(admin.revoke_key(name))
