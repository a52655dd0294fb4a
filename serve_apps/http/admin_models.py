"""The JSON bodies of the routes under /admin and of /feedback, as types: what OpenAPI says about them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BreakerBody",
    "BreakerList",
    "BreakerRow",
    "ChangePlan",
    "ConfigBody",
    "DeployBody",
    "DeploymentList",
    "DeploymentView",
    "FeedbackBody",
    "FeedbackView",
    "KeyBody",
    "KeyList",
    "KeyMade",
    "KeyRevokedView",
    "ModelDetail",
    "ModelList",
    "PromotionBody",
    "PromotionList",
    "PromotionRow",
    "ReasonBody",
    "ReleaseBody",
    "ReleaseList",
    "ReleaseView",
    "Retired",
    "StatusView",
    "TrafficBody",
    "TrafficView",
]


class Body(BaseModel):
    """What a caller sends: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class View(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


# ---- models and deployments ----


class VersionRow(View):
    version: str
    status: Literal["starting", "ready", "failed"]
    serving: bool
    app: str
    provider: str | None
    weight: float
    since: float = Field(description="seconds since the epoch")
    breaker: Literal["closed", "open", "half_open"]
    promoted: bool = Field(description="whether a promotion is recorded in this environment")
    feedback: dict[str, float] | None = Field(description="{n, mean}")
    reason: str | None = None


class ModelSummary(View):
    name: str
    task: str
    description: str
    versions: list[VersionRow]
    weights: dict[str, float]
    mirror: dict[str, float]
    release: str | None = Field(description="id of the release in progress")


class ModelDetail(ModelSummary):
    config: dict[str, Any]


class ModelList(View):
    models: list[ModelSummary]


class ConfigBody(Body):
    """A configuration (wire form, no secrets in it), and what the environment rules want to know about its origin."""

    config: dict[str, Any]
    models: list[str] | None = Field(default=None, description="only these models; default: everything")
    prune: bool = Field(default=False, description="retire what runs and is not in the configuration")
    others: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="the other environments' configurations"
    )
    evidence: dict[str, Any] | None = Field(
        default=None, description="staging's promotions: {promoted: {'MODEL VERSION': content fingerprint}}"
    )
    changed_outside_files: list[tuple[str, str]] = Field(default_factory=list)
    uncommitted: list[str] = Field(default_factory=list)


class Override(Body):
    name: str
    reason: str
    by: str = ""


class DeployBody(ConfigBody):
    overrides: list[Override] = Field(default_factory=list)


class ChangeRow(View):
    kind: Literal["settings", "model", "start", "redeploy", "amend", "weights", "retire", "unmanaged"]
    model: str | None = None
    version: str | None = None
    why: str | None = None


class RuleRow(View):
    name: str
    key: str
    message: str


class ChangePlan(View):
    environment: str
    changes: list[ChangeRow]
    rules: list[RuleRow] = Field(description="environment rules that deploying this would break")


class DeploymentItem(ChangeRow):
    status: Literal["done", "starting", "ready", "failed"]
    message: str | None = None


class DeploymentView(View):
    id: str
    state: Literal["running", "done", "failed"]
    at: float
    seconds: float
    override: str | None
    items: list[DeploymentItem]


class DeploymentList(View):
    deployments: list[DeploymentView]


class Retired(View):
    model: str
    retired: list[str]


class TrafficBody(Body):
    weights: dict[str, float] = Field(description="version -> 0 to 100; versions not named get 0")
    force: bool = Field(default=False, description="skip the checks of signature and golden requests")


class TrafficView(View):
    model: str
    weights: dict[str, float]


# ---- releases ----


class ReleaseBody(Body):
    """What differs from the model's own `release:` section."""

    candidate: str
    strategy: Literal["canary", "ab", "all_at_once"] | None = None
    steps: list[float] | None = None
    step_duration: float | None = Field(default=None, ge=0, description="seconds")
    analysis: dict[str, float | int | None] | None = None
    guard: dict[str, float | None] | None = Field(
        default=None, description="changes single guard rails; null takes one away"
    )
    force: bool = Field(default=False, description="skip the checks of signature and golden requests")


class ReasonBody(Body):
    reason: str = ""
    force: bool = Field(default=False, description="skip the checks of signature and golden requests")


class PromotionBody(Body):
    reason: str = Field(min_length=1, max_length=2000)


class ReleaseView(View):
    id: str
    model: str
    stable: str
    candidate: str
    state: Literal["planned", "running", "paused", "promoted", "rolled_back"]
    strategy: Literal["canary", "ab", "all_at_once"]
    step: int
    steps: list[float]
    percent: float
    step_duration: float = Field(description="seconds")
    analysis: dict[str, Any]
    guard: dict[str, float]
    samples: dict[str, dict[str, Any]] = Field(description="stable, candidate: requests, errors, p95_ms, feedback")
    started_at: float
    ended_at: float | None
    decision: dict[str, Any] = Field(description="what the figures say now: {action, reason, why, figures}")
    history: list[dict[str, Any]]
    problems: list[str] | None = Field(default=None, description="of a plan: why it would be refused")


class ReleaseList(View):
    releases: list[ReleaseView]


class PromotionRow(View):
    model: str
    version: str
    fingerprint: str
    at: float
    release: str | None = None
    override: str | None = None


class PromotionList(View):
    promotions: list[PromotionRow]


class BreakerRow(View):
    target: str
    state: Literal["closed", "open", "half_open"]
    ejections: int
    changed_at: float
    open_until: float | None
    since_revision: int
    why: str


class BreakerList(View):
    breakers: list[BreakerRow]


class BreakerBody(Body):
    target: str = Field(min_length=1, description="as listed: model:NAME:VERSION or http:HOST")


# ---- keys ----


class KeyBody(Body):
    name: str = Field(min_length=1, max_length=200)
    role: Literal["invoke", "operate"] = "invoke"
    expires_in_s: float | None = Field(default=None, gt=0)
    replace: bool = Field(default=False, description="revoke a key of this name first")


class KeyMade(View):
    key: str = Field(description="shown once, now")
    name: str
    role: str
    expires_at: float | None


class KeyRow(View):
    name: str
    role: str
    created_at: float
    expires_at: float | None
    expired: bool
    sha256: str = Field(description="the first 12 characters")


class KeyList(View):
    keys: list[KeyRow]


class KeyRevokedView(View):
    name: str
    revoked: bool


# ---- status and feedback ----


class RouterRow(View):
    id: str
    revision: int
    seconds_ago: float


class StatusView(View):
    environment: str | None
    revision: int
    models: int
    versions: dict[str, int]
    draining: list[str]
    releases: dict[str, str]
    keys: int
    routers: list[RouterRow]
    breakers: dict[str, list[str]] = Field(description="those that are not closed, by state")
    unheard_shards: list[int] = Field(description="no lock and no slot of a named queue is granted before these report")


class FeedbackBody(Body):
    """How good an earlier answer was: 1 is right, 0 is wrong."""

    request_id: str = Field(min_length=1, max_length=200, description="the answer's x-request-id")
    score: float = Field(ge=0, le=1)
    comment: str = Field(default="", max_length=2000)
    model: str | None = Field(
        default=None, description="the answer's x-headrace-model, if the id may be forgotten by now (operate)"
    )
    version: str | None = Field(default=None, description="the answer's x-headrace-version")


class FeedbackView(View):
    recorded: bool
    model: str | None = None
    version: str | None = None
