"""Operators' calls that block. Made from `headrace/async_operators.py` by `make format`: edit that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from headrace import admin
from headrace.shells import Shell

__all__ = ["Operators"]


class Operators(Shell):
    """The methods of a client that need the role `operate`."""

    def models(self) -> list[dict[str, Any]]:
        """All models with their versions, weights and states."""
        return list(self._do(admin.models())["models"])

    def model(self, name: str) -> dict[str, Any]:
        """One model with its versions, weights and states."""
        return dict(self._do(admin.model(name)))

    def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `deploy` with the same request would change. `request`: see `headrace.deployment.deploy_request`."""
        return dict(self._do(admin.plan(request)))

    def deploy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Record what shall run; returns at once, `deployment` tells how it goes."""
        return dict(self._do(admin.deploy(request)))

    def deployment(self, identifier: str) -> dict[str, Any]:
        """How a deployment goes: `{id, state: running|done|failed, seconds, items}`."""
        return dict(self._do(admin.deployment(identifier)))

    def deployments(self) -> list[dict[str, Any]]:
        """Recent deployments, newest first."""
        return list(self._do(admin.deployments())["deployments"])

    def retire(self, model: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
        """Take down one version, or with none the whole model. Refused while it gets traffic, unless `force`."""
        return dict(self._do(admin.retire(model, version, force=force)))

    def traffic(self, model: str, weights: Mapping[str, float], *, force: bool = False) -> dict[str, Any]:
        """Set the weights by hand; versions not named get 0."""
        return dict(self._do(admin.traffic(model, weights, force=force)))

    def status(self) -> dict[str, Any]:
        """What the control plane holds and how it is."""
        return dict(self._do(admin.status()))

    def start_release(self, model: str, candidate: str, **options: Unpack[admin.ReleaseOptions]) -> dict[str, Any]:
        """Begin to move traffic to `candidate`. `options`: what this release does otherwise than the model's `release:`
        section says (`headrace.admin.ReleaseOptions`)."""
        return dict(self._do(admin.release_start(model, candidate, options)))

    def plan_release(self, model: str, candidate: str, **options: Unpack[admin.ReleaseOptions]) -> dict[str, Any]:
        """What `start_release` would begin, with `problems`: why it would be refused. Nothing moves."""
        return dict(self._do(admin.release_plan(model, candidate, options)))

    def release_by_id(self, identifier: str) -> dict[str, Any]:
        """One release by its id, ended or not."""
        return dict(self._do(admin.release_show(identifier)))

    def release(self, model: str) -> dict[str, Any]:
        """The newest release of a model, with the figures and the decision of now."""
        return dict(self._do(admin.release_status(model)))

    def move_release(self, model: str, move: str, *, reason: str = "", force: bool = False) -> dict[str, Any]:
        """`move`: promote, pause, resume or rollback."""
        return dict(self._do(admin.release_move(model, move, reason=reason, force=force)))

    def releases(self, model: str | None = None) -> list[dict[str, Any]]:
        """Releases, newest first, each with its history."""
        return list(self._do(admin.releases(model))["releases"])

    def promotions(self) -> list[dict[str, Any]]:
        """Versions that have proved themselves here, so that the next environment may take them."""
        return list(self._do(admin.promotions())["promotions"])

    def record_promotion(self, model: str, version: str, *, reason: str) -> dict[str, Any]:
        """Record that a version proved itself here without a release: a first version has no stable one to be
        compared with. Its golden requests run first."""
        return dict(self._do(admin.record_promotion(model, version, reason)))

    def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Begin to collect old runs and unused blobs, as `state.retention` says; with `dry_run` only count them.
        Returns at once; `collection` tells how it goes."""
        return dict(self._do(admin.gc(dry_run=dry_run)))

    def collection(self) -> dict[str, Any] | None:
        """The newest collection: `{id, dry_run, state: running|done|failed, started_at, finished_at, error, counts}`"""
        found: dict[str, Any] | None = self._do(admin.gc_status())["collection"]
        return found

    def breakers(self) -> list[dict[str, Any]]:
        """Circuit breakers that have ever opened: `model:NAME:VERSION` and `http:HOST`."""
        return list(self._do(admin.breakers())["breakers"])

    def reset_breaker(self, target: str) -> dict[str, Any]:
        """Close a breaker now, as `breakers` names it."""
        return dict(self._do(admin.reset_breaker(target)))

    def keys(self) -> list[dict[str, Any]]:
        """The API keys by name, role and time; never the keys themselves."""
        return list(self._do(admin.keys())["keys"])

    def create_key(
        self, name: str, *, role: str = "invoke", expires_in_s: float | None = None, replace: bool = False
    ) -> dict[str, Any]:
        """A new API key. The key itself is in this answer and in no other."""
        call = admin.create_key(name, role=role, expires_in_s=expires_in_s, replace=replace)
        return dict(self._do(call))

    def revoke_key(self, name: str) -> Any:
        """End an API key; routers refuse it once they have the next table."""
        return self._do(admin.revoke_key(name))
