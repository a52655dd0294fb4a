"""The facts that the control plane's log holds, and their JSON form. Pure.

Events are persisted, so they ignore keys they don't know: an older control plane can read what a newer one wrote.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = [
    "AppDeleted",
    "ArrivalsLearned",
    "BreakerMoved",
    "DeploymentEnded",
    "DeploymentStarted",
    "Event",
    "FeedbackGiven",
    "KeyCreated",
    "KeyRevoked",
    "ModelDeclared",
    "ModelRemoved",
    "PromotionRecorded",
    "ReleaseMoved",
    "ReleaseObserved",
    "ReleaseStarted",
    "SettingsAdopted",
    "VersionAmended",
    "VersionDescribed",
    "VersionFailed",
    "VersionLost",
    "VersionReady",
    "VersionRemoved",
    "VersionStarting",
    "WeightsPlanned",
    "WeightsSet",
    "decode_event",
    "encode_event",
]


class Fact(BaseModel):
    """Something that happened at `at` (wall time, seconds since the epoch)."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    at: float


class SettingsAdopted(Fact):
    """The environment's own settings: everything of the routing table that belongs to no model."""

    type: Literal["settings_adopted"] = "settings_adopted"
    environment: str
    auth_enabled: bool = True
    max_body_bytes: int
    default_timeout_s: float
    run_store_shards: int = 1
    routes: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class ModelDeclared(Fact):
    """A model's own configuration, without its versions."""

    type: Literal["model_declared"] = "model_declared"
    model: str
    config: dict[str, Any]


class ModelRemoved(Fact):
    type: Literal["model_removed"] = "model_removed"
    model: str


class DeploymentStarted(Fact):
    """An operator asked for `changes`; the deployment ends when each started version is ready or has failed."""

    type: Literal["deployment_started"] = "deployment_started"
    id: str
    changes: list[dict[str, Any]]
    override: str | None = None


class DeploymentEnded(Fact):
    type: Literal["deployment_ended"] = "deployment_ended"
    id: str
    state: Literal["done", "failed"]


class VersionStarting(Fact):
    """A new instance of a version starts; the instance that serves now, if any, goes on until this one is ready."""

    type: Literal["version_starting"] = "version_starting"
    model: str
    version: str
    generation: int
    app: str
    config: dict[str, Any]
    fingerprint: str
    deployment: str | None = None


class VersionAmended(Fact):
    """Only settings changed that need no new instance (golden requests, cost)."""

    type: Literal["version_amended"] = "version_amended"
    model: str
    version: str
    config: dict[str, Any]


class VersionReady(Fact):
    type: Literal["version_ready"] = "version_ready"
    model: str
    version: str
    generation: int


class VersionFailed(Fact):
    type: Literal["version_failed"] = "version_failed"
    model: str
    version: str
    generation: int
    reason: str


class VersionDescribed(Fact):
    """What a running host says about itself: the signature that its class declares, and whether it streams."""

    type: Literal["version_described"] = "version_described"
    model: str
    version: str
    generation: int
    signature: dict[str, Any] | None = None
    streaming: bool | None = None


class VersionLost(Fact):
    """The serving application is gone (the cluster was replaced): the same instance has to start anew."""

    type: Literal["version_lost"] = "version_lost"
    model: str
    version: str
    reason: str = ""


class VersionRemoved(Fact):
    """The version left the routing table; its applications drain and are deleted in the background."""

    type: Literal["version_removed"] = "version_removed"
    model: str
    version: str
    reason: str = ""


class AppDeleted(Fact):
    type: Literal["app_deleted"] = "app_deleted"
    app: str


class WeightsSet(Fact):
    type: Literal["weights_set"] = "weights_set"
    model: str
    weights: dict[str, float]
    mirror: dict[str, float] | None = None
    experiment: str | None = None
    reason: str = ""


class WeightsPlanned(Fact):
    """Weights to set as soon as every version that they give traffic to is ready."""

    type: Literal["weights_planned"] = "weights_planned"
    model: str
    weights: dict[str, float]
    mirror: dict[str, float] | None = None


class KeyCreated(Fact):
    """A key by its SHA-256; the key itself is nowhere."""

    type: Literal["key_created"] = "key_created"
    name: str
    sha256: str
    role: str
    expires_at: float | None = None


class KeyRevoked(Fact):
    type: Literal["key_revoked"] = "key_revoked"
    name: str


class ReleaseStarted(Fact):
    type: Literal["release_started"] = "release_started"
    id: str
    model: str
    stable: str
    candidate: str
    plan: dict[str, Any]
    weights_before: dict[str, float]
    by: str = ""


class ReleaseMoved(Fact):
    """The release took one transition of `serve_apps.control.release.TRANSITIONS`; the weights move with it."""

    type: Literal["release_moved"] = "release_moved"
    id: str
    model: str
    move: Literal["advance", "pause", "resume", "promote", "roll_back"]
    weights: dict[str, float] | None = None
    why: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)
    by: str = ""


class ReleaseObserved(Fact):
    """What came in since the last observation, and the state of the tests after it, if one was made."""

    type: Literal["release_observed"] = "release_observed"
    id: str
    model: str
    stable: dict[str, Any]
    candidate: dict[str, Any]
    looks: dict[str, Any] | None = None


class BreakerMoved(Fact):
    """A breaker changed its state; `snapshot` is the whole durable part of `serve_apps.control.breaker.Breaker`."""

    type: Literal["breaker_moved"] = "breaker_moved"
    target: str
    why: str
    snapshot: dict[str, Any]


class PromotionRecorded(Fact):
    """A version proved itself (or an operator says so, with a reason) in this environment."""

    type: Literal["promotion_recorded"] = "promotion_recorded"
    model: str
    version: str
    fingerprint: str
    release: str | None = None
    override: str | None = None
    figures: dict[str, Any] = Field(default_factory=dict)


class FeedbackGiven(Fact):
    type: Literal["feedback_given"] = "feedback_given"
    request_id: str
    model: str
    version: str
    score: float
    comment: str = ""


class ArrivalsLearned(Fact):
    """Arrivals per model since the last such event, and which model followed which within one run."""

    type: Literal["arrivals_learned"] = "arrivals_learned"
    arrivals: dict[str, list[float]] = Field(default_factory=dict)
    follows: dict[str, dict[str, int]] = Field(default_factory=dict)


Event = Annotated[
    SettingsAdopted
    | ModelDeclared
    | ModelRemoved
    | DeploymentStarted
    | DeploymentEnded
    | VersionStarting
    | VersionAmended
    | VersionReady
    | VersionFailed
    | VersionDescribed
    | VersionLost
    | VersionRemoved
    | AppDeleted
    | WeightsSet
    | WeightsPlanned
    | KeyCreated
    | KeyRevoked
    | ReleaseStarted
    | ReleaseMoved
    | ReleaseObserved
    | BreakerMoved
    | PromotionRecorded
    | FeedbackGiven
    | ArrivalsLearned,
    Field(discriminator="type"),
]

_EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def encode_event(event: Any) -> bytes:
    """One event as JSON."""
    return _EVENT.dump_json(event)


def decode_event(data: bytes) -> Any:
    """The event in `data`. Raises `pydantic.ValidationError` for an unknown type or a missing field."""
    return _EVENT.validate_json(data)
