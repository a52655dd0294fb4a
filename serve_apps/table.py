"""The routing table: all a router knows, as one frozen value. The control plane makes it, routers only read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config.models import ModelConfig, RouteConfig, Signature
from cluster.errors import Unavailable

__all__ = ["ApiKey", "HostEntry", "ModelEntry", "RoutingTable", "VersionEntry", "no_table_yet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """One deployed version. `ready` is False while its application starts; `ejected` is the breaker's word."""

    version: str
    app: str
    signature: Signature | None
    timeout_s: float
    streaming: bool = False
    merge: bool = True
    replicas: int = 1
    ready: bool = True
    ejected: bool = False
    half_open: bool = False
    wakes: bool = False
    """It may be scaled to zero: without a replica it is not broken, and a call brings one back."""
    cost_per_request: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model: its versions, the weights now in force (0–100, they need not sum to 100), and its own config."""

    name: str
    config: ModelConfig
    versions: Mapping[str, VersionEntry]
    weights: Mapping[str, float]
    experiment: str = ""
    """Salt of the sticky hash: a new release draws its callers anew."""
    mirror: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key by its SHA-256 (hex). Roles: `invoke` calls models and workflows, `operate` may do everything."""

    name: str
    sha256: str
    role: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """The breaker of an http host. `since`: outcomes of calls begun under an older revision say nothing about it.
    `probes`: how many calls may try a half-open one at a time, over all shards."""

    state: Literal["open", "half_open"]
    open_until: float | None
    since: int
    probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """`revision` only grows; a router replaces its table by any newer one and asks for nothing else. It begins with an
    empty one of revision 0, by which it can say of nothing that it does not exist: see `no_table_yet`."""

    revision: int = 0
    environment: str = "dev"
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    routes: Mapping[str, RouteConfig] = field(default_factory=dict)
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By sha256."""
    auth_enabled: bool = True
    max_body_bytes: int = 32 * 1024 * 1024
    default_timeout_s: float = 60.0
    run_store_shards: int = 1
    hosts: Mapping[str, HostEntry] = field(default_factory=dict)
    """Http hosts (`name[:port]`) whose breaker is not closed; for the run stores, routers call no hosts."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def no_table_yet() -> Unavailable:
    """What a router says that has not heard from the control plane."""
    return Unavailable(
        "this router has just started and knows no models and keys yet: try again in a moment", retry_after_s=1
    )
