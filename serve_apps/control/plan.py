"""What deploying a configuration would change: the difference between a file and what runs. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.config.models import Config, ModelConfig
from cluster.errors import Conflict, NotFound
from cluster.signature import version_problem
from serve_apps.control.state import ControlState, ModelState
from serve_apps.control.tables import model_config

__all__ = [
    "Change", "initial_weights", "mentions", "own_config", "pins", "plan", "semver", "settings_of",
    "version_fingerprint",
]  # fmt: skip

_NO_RESTART = {"golden", "cost_per_request", "timeout_s", "start_timeout_s"}
"""Settings of a version that the control plane and the routers use, and the host does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that differs. `config` is what would be applied (not shown to users)."""

    kind: Literal["settings", "model", "start", "redeploy", "amend", "weights", "retire", "unmanaged"]
    model: str = ""
    version: str = ""
    why: str = ""
    config: Any = None
    fingerprint: str = ""

    def to_wire(self) -> dict[str, Any]:
        data = asdict(self)
        data.pop("config")
        return {key: value for key, value in data.items() if value}


def semver(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def version_fingerprint(config: ModelConfig, version: str) -> str:
    """SHA-256 (hex, 16 characters) of everything about a version that its host is started with."""
    signature = config.signature_of(version)
    data = {
        "task": config.task,
        "version": {k: v for k, v in _wire(config.versions[version]).items() if k not in _NO_RESTART},
        "signature": _wire(signature) if signature else None,
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _wire(model: Any) -> dict[str, Any]:
    return dict(model.model_dump(mode="json", by_alias=True))


def own_config(config: ModelConfig) -> dict[str, Any]:
    """A model's configuration in wire form, without its versions."""
    data = _wire(config)
    data.pop("versions")
    return data


def initial_weights(config: ModelConfig) -> dict[str, float]:
    """A new model's weights: as declared, else everything to its newest version."""
    if config.traffic:
        return {version: float(config.traffic.get(version, 0)) for version in config.versions}
    newest = max(config.versions, key=semver)
    return {version: 100.0 if version == newest else 0.0 for version in config.versions}


def settings_of(config: Config) -> dict[str, Any]:
    """Everything of the routing table that belongs to no model."""
    outbound = config.outbound_breaker.model_dump(mode="json", exclude_defaults=True)
    routes = {name: route.model_dump(mode="json", by_alias=True) for name, route in config.routes.items()}
    return {
        "environment": config.environment,
        "auth_enabled": config.auth.enabled,
        "max_body_bytes": int(config.router.max_body_mb * 1024 * 1024),
        "default_timeout_s": float(config.router.timeout_s),
        "run_store_shards": config.state.shards,
        "routes": routes,
        # What differs from the defaults only, so that a new key here changes nothing for those who do not use it.
        "settings": {"outbound_breaker": outbound} if outbound else {},
    }


def plan(
    state: ControlState, wanted: Config, *, only: Collection[str] | None = None, prune: bool = False
) -> list[Change]:
    """The changes, in the order in which they are applied. `only`: these models and nothing else; `prune`: what runs
    and is not in the file is retired (otherwise it is listed as `unmanaged` and left alone).

    Raises `NotFound` for a name in `only` that the file does not have, `Conflict` for a change that is not allowed.
    """
    for name in only or ():
        if name not in wanted.models:
            raise NotFound(
                f"no model {name!r} in this configuration: {', '.join(sorted(wanted.models)) or 'it has none'}"
            )
    changes: list[Change] = []
    settings = settings_of(wanted)
    if only is None and settings != state.settings:
        changes.append(Change(kind="settings", why=_settings_why(state.settings, settings), config=settings))
    for name, config in wanted.models.items():
        if only is None or name in only:
            changes += _plan_model(state, name, config, prune)
    if only is None:
        for name in sorted(state.models.keys() - wanted.models.keys()):
            if prune:
                changes.append(_retirement(state, wanted, name))
                continue
            changes += [
                Change(kind="unmanaged", model=name, version=version, why="it is not in the configuration")
                for version in sorted(state.models[name].versions, key=semver)
            ]
    return changes


def _retirement(state: ControlState, wanted: Config, name: str) -> Change:
    """A whole model leaves, traffic or not: that the file does not have it any more is what `prune` asks about."""
    release = state.release_of(name)
    if release is not None:
        raise Conflict(f"{name} has the release {release.id} in progress: promote it or roll it back first")
    users = [f"route {route}" for route, config in wanted.routes.items() if mentions(config.model_dump(), name)]
    users += [f"{other}'s fallback" for other, model in wanted.models.items() if name in model.fallback]
    if users:
        raise Conflict(f"{name} is not in the configuration, but {', '.join(users)} uses it")
    versions = ", ".join(sorted(state.models[name].versions, key=semver))
    return Change(kind="retire", model=name, why=f"it is not in the configuration (all its versions: {versions})")


def pins(config: Any, name: str, version: str) -> bool:
    """Whether a route's configuration, or a part of it, sends something to this one version."""
    if isinstance(config, Mapping):
        return (config.get("model") == name and config.get("version") == version) or any(
            pins(value, name, version) for value in config.values()
        )
    if isinstance(config, Sequence) and not isinstance(config, str):
        return any(pins(value, name, version) for value in config)
    return False


def mentions(config: Any, name: str) -> bool:
    """Whether a route's configuration, or a part of it, sends something to `name`."""
    if isinstance(config, Mapping):
        return (
            config.get("model") == name
            or config.get("default") == name
            or name in (config.get("candidates") or ())
            or any(mentions(value, name) for value in config.values())
        )
    if isinstance(config, Sequence) and not isinstance(config, str):
        return any(mentions(value, name) for value in config)
    return False


def _settings_why(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    if before is None:
        return "first deployment"
    return ", ".join(key for key in after if before.get(key) != after[key])


def _plan_model(state: ControlState, name: str, config: ModelConfig, prune: bool) -> list[Change]:
    known = state.models.get(name)
    changes = []
    own = own_config(config)
    if known is None:
        changes.append(Change(kind="model", model=name, why="new model", config=own))
    elif known.config != own:
        differs = sorted(key for key in own if known.config.get(key) != own[key])
        changes.append(Change(kind="model", model=name, why=f"changed: {', '.join(differs)}", config=own))
    for version in sorted(config.versions, key=semver):
        change = _plan_version(state, name, known, config, version)
        if change is not None:
            changes.append(change)
    for version in sorted((known.versions.keys() if known else set()) - config.versions.keys(), key=semver):
        changes.append(
            Change(
                kind="retire" if prune else "unmanaged",
                model=name,
                version=version,
                why="it is not in the configuration",
            )
        )
    weights = _plan_weights(state, name, known, config)
    if weights is not None:
        changes.append(weights)
    return changes


def _plan_version(
    state: ControlState, name: str, known: ModelState | None, config: ModelConfig, version: str
) -> Change | None:
    spec = _wire(config.versions[version])
    fingerprint = version_fingerprint(config, version)
    if known is not None:
        _check_signature(name, known, config, version)
    running = known.versions.get(version) if known else None
    newest = running.newest if running else None
    if newest is None:
        return Change(kind="start", model=name, version=version, why="new", config=spec, fingerprint=fingerprint)
    if newest.fingerprint != fingerprint:
        differs = sorted(key for key in spec if newest.config.get(key) != spec[key])
        why = f"changed: {', '.join(differs) or 'the model around it'}"
        release = state.release_of(name)
        if release is not None and version in (release.stable, release.candidate):
            raise Conflict(
                f"{name} {version} takes part in the release {release.id}, so it cannot change now ({why}): "
                f"wait, or `headrace release rollback {name}` first"
            )
        return Change(kind="redeploy", model=name, version=version, why=why, config=spec, fingerprint=fingerprint)
    if newest.status == "failed":
        why = f"its last start failed: {newest.reason}"
        return Change(kind="redeploy", model=name, version=version, why=why, config=spec, fingerprint=fingerprint)
    if newest.config != spec:
        differs = sorted(key for key in spec if newest.config.get(key) != spec[key])
        return Change(kind="amend", model=name, version=version, why=f"changed: {', '.join(differs)}", config=spec)
    return None


def _check_signature(name: str, known: ModelState, config: ModelConfig, version: str) -> None:
    """A version that fits the file may still not fit those that run and are no longer in it."""
    before = model_config(known)
    for other in sorted(before.versions, key=semver):
        if other == version and known.versions[other].serving is None:
            continue  # nobody can have called it yet: it may be mended under its number
        problem = version_problem(other, before.signature_of(other), version, config.signature_of(version))
        if problem is not None:
            raise Conflict(f"{name}, where {other} runs: {problem.text}: call it {problem.wanted}")


def _plan_weights(state: ControlState, name: str, known: ModelState | None, config: ModelConfig) -> Change | None:
    mirror = {version: float(share) for version, share in config.mirror.items()}
    if known is None or not known.weights:
        weights = initial_weights(config)
        return Change(kind="weights", model=name, why=_shares(weights), config={"weights": weights, "mirror": mirror})
    declared = {version: float(weight) for version, weight in config.traffic.items()}
    before = {version: float(weight) for version, weight in (known.config.get("traffic") or {}).items()}
    weights = known.weights if not declared or declared == before else {**dict.fromkeys(known.weights, 0.0), **declared}
    if weights == known.weights and mirror == known.mirror:
        return None
    if weights != known.weights and state.release_of(name) is not None:
        raise Conflict(f"{name}'s weights belong to the release in progress: promote it or roll it back first")
    return Change(kind="weights", model=name, why=_shares(weights), config={"weights": weights, "mirror": mirror})


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{version}: {weight:g}" for version, weight in weights.items() if weight > 0) or "none"
