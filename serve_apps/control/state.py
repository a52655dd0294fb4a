"""The control plane's whole state, as its snapshots hold it. Pure; `apply` says how facts change it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_apps.control.breaker import BreakerSnapshot
from serve_apps.control.prefetch import Patterns
from serve_apps.control.release import Release

__all__ = [
    "ControlState",
    "Deployment",
    "FeedbackTotals",
    "Instance",
    "KeyState",
    "ModelState",
    "Promotion",
    "VersionState",
]


class Tolerant(BaseModel):
    """A part of the snapshot. Unknown keys are ignored, since a newer release may have written them."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Instance(Tolerant):
    """One application that holds, or is about to hold, a version."""

    app: str
    generation: int
    config: dict[str, Any]
    fingerprint: str
    status: Literal["starting", "ready", "failed"]
    since: float
    reason: str = ""
    deployment: str | None = None
    described: bool = False
    proven: bool = False
    """It served before its application was lost: it may come back as it was."""
    signature: dict[str, Any] | None = None
    """As the host's class declares it; what the configuration declares wins over it."""
    streaming: bool | None = None
    ready_revision: int = 0
    """Of the first table that lists it: requests sent under an older one went to its predecessor."""


class VersionState(Tolerant):
    """`serving` answers requests; `next` starts, or is the last try that failed."""

    serving: Instance | None = None
    next: Instance | None = None

    @property
    def newest(self) -> Instance | None:
        return self.next or self.serving


class ModelState(Tolerant):
    config: dict[str, Any]
    versions: dict[str, VersionState] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    mirror: dict[str, float] = Field(default_factory=dict)
    experiment: str = ""
    planned: dict[str, Any] | None = None
    """`{weights, mirror}` to set as soon as the versions that get traffic are ready."""


class Deployment(Tolerant):
    id: str
    at: float
    changes: list[dict[str, Any]]
    override: str | None = None
    state: Literal["running", "done", "failed"] = "running"
    ended_at: float | None = None
    waiting: list[str] = Field(default_factory=list)
    """`model version generation` of each version that has not ended starting."""
    failed: dict[str, str] = Field(default_factory=dict)


class KeyState(Tolerant):
    name: str
    sha256: str
    role: str
    created_at: float
    expires_at: float | None = None


class Promotion(Tolerant):
    model: str
    version: str
    fingerprint: str
    at: float
    release: str | None = None
    override: str | None = None
    figures: dict[str, Any] = Field(default_factory=dict)


class FeedbackTotals(Tolerant):
    n: int = 0
    sum: float = 0.0


class ControlState(Tolerant):
    format: int = 1
    revision: int = 0
    """Of the routing table: grows with every fact that changes it."""
    settings: dict[str, Any] | None = None
    models: dict[str, ModelState] = Field(default_factory=dict)
    generations: dict[str, int] = Field(default_factory=dict)
    """`model version` -> its newest instance's number; kept when the version goes, so that names never come back."""
    drains: dict[str, float] = Field(default_factory=dict)
    """Applications that nothing routes to any more, and since when."""
    deployments: dict[str, Deployment] = Field(default_factory=dict)
    keys: dict[str, KeyState] = Field(default_factory=dict)
    releases: dict[str, Release] = Field(default_factory=dict)
    active: dict[str, str] = Field(default_factory=dict)
    """Model -> the release that is in progress."""
    breakers: dict[str, BreakerSnapshot] = Field(default_factory=dict)
    promotions: dict[str, Promotion] = Field(default_factory=dict)
    feedback: dict[str, FeedbackTotals] = Field(default_factory=dict)
    feedback_ids: dict[str, None] = Field(default_factory=dict)
    patterns: Patterns = Field(default_factory=Patterns)

    def serving_since(self, model: str, version: str) -> int:
        """The first revision of what serves a version now (its predecessor's last answers may come minutes later); 0
        when nothing does."""
        known = self.models.get(model)
        found = known.versions.get(version) if known else None
        return found.serving.ready_revision if found and found.serving else 0

    def counts_since(self, model: str, version: str) -> int:
        """The first revision whose answers are figures of this version for the release in progress, if there is one."""
        release = self.release_of(model)
        return max(self.serving_since(model, version), release.since_revision if release else 0)

    def release_of(self, model: str) -> Release | None:
        """The release in progress of this model."""
        identifier = self.active.get(model)
        return self.releases.get(identifier) if identifier else None
