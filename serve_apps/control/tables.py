"""Makes the routing table out of the control plane's state. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from cluster.config.models import BreakerConfig, ModelConfig, RouteConfig
from cluster.config.wire import from_wire
from serve_apps.control.breaker import BreakerState
from serve_apps.control.state import ControlState, Instance, ModelState
from serve_apps.table import ApiKey, HostEntry, ModelEntry, RoutingTable, VersionEntry

__all__ = ["HOST", "build_table", "host_breaker_config", "model_config", "model_target"]

HOST = "http:"
"""What the names of the breakers of http hosts begin with."""


def model_target(model: str, version: str) -> str:
    """The breaker's name for a model version."""
    return f"model:{model}:{version}"


def model_config(model: ModelState) -> ModelConfig:
    """A model's configuration with those versions that are there now (serving, or starting for the first time)."""
    versions = {}
    for name, version in model.versions.items():
        instance = version.serving or version.next
        if instance is not None:
            versions[name] = instance.config
            known = instance.config.get("signature") or model.config.get("signature")
            if instance.signature and not known and model.config.get("task", "generic") == "generic":
                versions[name] = {**instance.config, "signature": instance.signature}
    data = {**model.config, "versions": versions}
    for key in ("traffic", "mirror"):
        data[key] = {name: weight for name, weight in (data.get(key) or {}).items() if name in versions}
    return _parse_model(json.dumps(data, sort_keys=True))


@lru_cache(maxsize=1024)
def _parse_model(text: str) -> ModelConfig:
    return from_wire({"models": {"m": json.loads(text)}}).models["m"]


@lru_cache(maxsize=64)
def _parse_routes(text: str) -> dict[str, RouteConfig]:
    return dict(from_wire({"routes": json.loads(text)}).routes)


def build_table(state: ControlState) -> RoutingTable:
    """The table of the state's revision."""
    settings: dict[str, Any] = state.settings or {}
    return RoutingTable(
        revision=state.revision,
        environment=settings.get("environment", "dev"),
        models={name: _entry(state, name, model) for name, model in state.models.items()},
        routes=_parse_routes(json.dumps(settings.get("routes", {}), sort_keys=True)),
        keys={
            sha: ApiKey(name=key.name, sha256=sha, role=key.role, expires_at=key.expires_at)
            for sha, key in state.keys.items()
        },
        auth_enabled=settings.get("auth_enabled", True),
        max_body_bytes=settings.get("max_body_bytes", 32 * 1024 * 1024),
        default_timeout_s=settings.get("default_timeout_s", 60.0),
        run_store_shards=settings.get("run_store_shards", 1),
        hosts=_hosts(state),
        settings=dict(settings.get("settings", {})),
    )


def host_breaker_config(state: ControlState) -> BreakerConfig:
    """What opens and closes the breakers of http hosts."""
    settings: dict[str, Any] = (state.settings or {}).get("settings") or {}
    return BreakerConfig.model_validate(settings.get("outbound_breaker") or {})


def _hosts(state: ControlState) -> dict[str, HostEntry]:
    probes = host_breaker_config(state).half_open_requests
    return {
        target.removeprefix(HOST): HostEntry(
            state="open" if breaker.state is BreakerState.OPEN else "half_open",
            open_until=breaker.open_until,
            since=breaker.since_revision,
            probes=probes,
        )
        for target, breaker in state.breakers.items()
        if target.startswith(HOST) and breaker.state is not BreakerState.CLOSED
    }


def _entry(state: ControlState, name: str, model: ModelState) -> ModelEntry:
    config = model_config(model)
    versions = {}
    for version, known in model.versions.items():
        instance = known.serving or known.next
        if instance is not None:
            versions[version] = _version(state, name, config, version, instance)
    return ModelEntry(
        name=name,
        config=config,
        versions=versions,
        weights={version: weight for version, weight in model.weights.items() if version in versions},
        experiment=model.experiment,
        mirror={version: share for version, share in model.mirror.items() if version in versions},
    )


def _version(state: ControlState, name: str, config: ModelConfig, version: str, instance: Instance) -> VersionEntry:
    spec = config.versions[version]
    breaker = state.breakers.get(model_target(name, version))
    return VersionEntry(
        version=version,
        app=instance.app,
        signature=config.signature_of(version),
        timeout_s=spec.timeout_s,
        streaming=config.task == "chat" if instance.streaming is None else instance.streaming,
        replicas=spec.autoscaling.max_replicas if spec.autoscaling else spec.replicas,
        ready=instance.status == "ready",
        ejected=breaker is not None and breaker.state is BreakerState.OPEN,
        half_open=breaker is not None and breaker.state is BreakerState.HALF_OPEN,
        wakes=spec.autoscaling is not None and spec.autoscaling.min_replicas == 0,
        cost_per_request=spec.cost_per_request,
    )
