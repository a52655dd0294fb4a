"""The operators' calls (`/admin/…`) as `Call`s. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from headrace.api import admin
from headrace.wire import Call, path_of

__all__ = [
    "ReleaseOptions",
    "breakers",
    "create_key",
    "deploy",
    "deployment",
    "deployments",
    "gc",
    "gc_status",
    "keys",
    "model",
    "models",
    "plan",
    "promotions",
    "record_promotion",
    "release_move",
    "release_plan",
    "release_show",
    "release_start",
    "release_status",
    "releases",
    "reset_breaker",
    "retire",
    "revoke_key",
    "status",
    "traffic",
]


class ReleaseOptions(TypedDict, total=False):
    """What one release does otherwise than the model's `release:` section says. `analysis` and `guard` change single
    values; None takes `feedback` or a guard rail away. `force` skips the checks of signature and golden requests."""

    strategy: Literal["canary", "ab", "all_at_once"] | str
    steps: list[float]
    step_duration: float
    analysis: Mapping[str, float | None]
    guard: Mapping[str, float | None]
    force: bool


def status() -> Call[Any]:
    return admin("GET", "/admin/status")


def models() -> Call[Any]:
    return admin("GET", "/admin/models")


def model(name: str) -> Call[Any]:
    return admin("GET", path_of("admin", "models", name))


def plan(request: Mapping[str, Any]) -> Call[Any]:
    return admin("POST", "/admin/plan", request, retry_safe=True)


def deploy(request: Mapping[str, Any]) -> Call[Any]:
    return admin("POST", "/admin/deploy", request)


def deployment(identifier: str) -> Call[Any]:
    return admin("GET", path_of("admin", "deployments", identifier))


def deployments() -> Call[Any]:
    return admin("GET", "/admin/deployments")


def retire(model: str, version: str | None, *, force: bool) -> Call[Any]:
    parts = ["admin", "models", model, *(["versions", version] if version else [])]
    return admin("DELETE", path_of(*parts, query={"force": "true" if force else None}))


def traffic(model: str, weights: Mapping[str, float], *, force: bool) -> Call[Any]:
    return admin("PUT", path_of("admin", "models", model, "traffic"), {"weights": dict(weights), "force": force})


def release_start(model: str, candidate: str, options: Mapping[str, Any]) -> Call[Any]:
    return admin("POST", path_of("admin", "models", model, "release"), {"candidate": candidate, **options})


def release_plan(model: str, candidate: str, options: Mapping[str, Any]) -> Call[Any]:
    path = path_of("admin", "models", model, "release", "plan")
    return admin("POST", path, {"candidate": candidate, **options}, retry_safe=True)


def release_show(identifier: str) -> Call[Any]:
    return admin("GET", path_of("admin", "releases", identifier))


def release_status(model: str) -> Call[Any]:
    return admin("GET", path_of("admin", "models", model, "release"))


def release_move(model: str, move: str, *, reason: str, force: bool) -> Call[Any]:
    """`move`: promote, pause, resume or rollback."""
    return admin("POST", path_of("admin", "models", model, "release", move), {"reason": reason, "force": force})


def releases(model: str | None) -> Call[Any]:
    return admin("GET", path_of("admin", "releases", query={"model": model}))


def promotions() -> Call[Any]:
    return admin("GET", "/admin/promotions")


def record_promotion(model: str, version: str, reason: str) -> Call[Any]:
    return admin("POST", path_of("admin", "models", model, "versions", version, "promotion"), {"reason": reason})


def gc(*, dry_run: bool) -> Call[Any]:
    return admin("POST", path_of("admin", "gc", query={"dry_run": "true" if dry_run else None}), {}, retry_safe=True)


def gc_status() -> Call[Any]:
    return admin("GET", "/admin/gc")


def breakers() -> Call[Any]:
    return admin("GET", "/admin/breakers")


def reset_breaker(target: str) -> Call[Any]:
    return admin("POST", "/admin/breakers/reset", {"target": target})


def keys() -> Call[Any]:
    return admin("GET", "/admin/keys")


def create_key(name: str, *, role: str, expires_in_s: float | None, replace: bool) -> Call[Any]:
    payload: dict[str, Any] = {"name": name, "role": role}
    if expires_in_s is not None:
        payload["expires_in_s"] = expires_in_s
    if replace:
        payload["replace"] = True
    return admin("POST", "/admin/keys", payload)


def revoke_key(name: str) -> Call[Any]:
    return admin("DELETE", path_of("admin", "keys", name))
