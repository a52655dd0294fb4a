"""The configuration as types: what may stand in configs/*.yaml, and nothing else. Reads no file, no environment.

Models and routes are here; all other parts come from `sections`, `tensors` and `strict`, and may be imported from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator

from cluster.config.quantities import Bytes, Milliseconds, Seconds
from cluster.config.sections import (
    AuthConfig,
    ClusterConfig,
    ImageConfig,
    LimitsConfig,
    QueueConfig,
    RetentionConfig,
    RouterConfig,
    StateConfig,
    StorageConfig,
    WebhooksConfig,
    WorkflowsConfig,
)
from cluster.config.strict import Name, SecretRef, SemVer, Strict
from cluster.config.tensors import TASK_SIGNATURES, Signature, TensorSpec

__all__ = [
    "RULE_NAMES",
    "TASK_SIGNATURES",
    "AnalysisConfig",
    "AuthConfig",
    "AutoscalingConfig",
    "BatchingConfig",
    "BreakerConfig",
    "ClusterConfig",
    "Config",
    "ImageConfig",
    "LimitsConfig",
    "ModelConfig",
    "QueueConfig",
    "ReleaseConfig",
    "Resources",
    "RetentionConfig",
    "RetryConfig",
    "RouteConfig",
    "RouterConfig",
    "RuleConfig",
    "SecretRef",
    "Signature",
    "StateConfig",
    "StorageConfig",
    "TensorSpec",
    "VersionConfig",
    "WebhooksConfig",
    "WorkflowsConfig",
]


class Resources(Strict):
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    vram_gb: float | None = Field(default=None, gt=0)
    memory: Bytes | None = Field(default=None, gt=0, description="bytes; '2GiB' is accepted")
    accelerator: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole_cards(self) -> Resources:
        if self.gpus > 1 and not self.gpus.is_integer():
            raise ValueError(f"gpus: {self.gpus:g} is no number of cards: above 1, Ray gives out whole ones only")
        return self


class AutoscalingConfig(Strict):
    min_replicas: int = Field(default=0, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=8, gt=0)
    idle_s: Seconds = Field(default=300, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})")
        return self


class BatchingConfig(Strict):
    max_batch_size: int = Field(default=1, ge=1)
    max_queue_delay_ms: Milliseconds = Field(default=2.0, ge=0)
    priority_levels: int = Field(default=3, ge=1)
    queue: int = Field(default=1024, ge=1, description="items that may wait before callers are told to come later")


class RetryConfig(Strict):
    max_attempts: int = Field(default=2, ge=1)
    budget: float = Field(default=0.2, ge=0, le=1, description="retries as a share of requests, at most")


class BreakerConfig(Strict):
    """Envoy's outlier-detection terms."""

    enabled: bool = True
    consecutive_failures: int = Field(default=5, ge=1)
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    min_requests: int = Field(default=20, ge=1)
    interval_s: Seconds = Field(default=10, gt=0)
    base_ejection_s: Seconds = Field(default=30, gt=0)
    max_ejection_percent: float = Field(default=100, ge=0, le=100)
    half_open_requests: int = Field(default=3, ge=1)


class AnalysisConfig(Strict):
    """How a candidate is compared with the concurrent stable. Margins are the worsening that is still acceptable."""

    error_rate: float = Field(default=0.01, ge=0, le=1, description="absolute worsening allowed")
    latency_p95: float = Field(default=1.2, gt=0, description="candidate / stable allowed")
    feedback: float | None = Field(default=None, ge=0, le=1, description="absolute drop of the mean allowed")
    min_samples: int = Field(default=50, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class ReleaseConfig(Strict):
    strategy: Literal["canary", "ab", "all_at_once"] = "canary"
    steps: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(default=(5, 25, 50, 100), min_length=1)
    step_duration: Seconds = Field(default=300, ge=0, description="seconds; '5m' is accepted")
    analysis: AnalysisConfig = AnalysisConfig()
    guard: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: {"error_rate": 0.2})

    @model_validator(mode="after")
    def _ascending(self) -> ReleaseConfig:
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps must grow: {list(self.steps)}")
        return self


class VersionConfig(Strict):
    """One version of a model. `config` goes to the provider's class as keyword arguments."""

    provider: Literal["torch", "python", "openai_compatible", "onnx"]
    model_class: str | None = Field(default=None, alias="class", description="module:Class, importable on the cluster")
    artifact: str | None = Field(default=None, description="fsspec URL of the weights, or package:NAME")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    config: dict[str, Any] = Field(default_factory=dict)
    endpoint: str | None = None
    api_key: SecretRef | SecretStr | None = None
    upstream_model: str | None = Field(default=None, description="the model's name at the endpoint")
    signature: Signature | None = None
    resources: Resources = Resources()
    replicas: int = Field(default=1, ge=0)
    autoscaling: AutoscalingConfig | None = None
    batching: BatchingConfig = BatchingConfig()
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    seed: int | None = None
    warmup: list[dict[str, Any]] = Field(default_factory=list)
    golden: list[dict[str, Any]] = Field(default_factory=list, description="requests and what their answers must hold")
    timeout_s: Seconds = Field(default=60, gt=0)
    start_timeout_s: Seconds = Field(
        default=1800, gt=0, description="how long fetching weights, loading and warm-up may take together"
    )
    cpu_threads: int | None = Field(default=None, ge=1)
    cost_per_request: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _provider_needs(self) -> VersionConfig:
        if self.provider == "openai_compatible" and not self.endpoint:
            raise ValueError("provider openai_compatible needs `endpoint` (the URL that ends in /v1)")
        if self.provider in ("torch", "python") and not self.model_class:
            raise ValueError(f"provider {self.provider} needs `class: module:Class`")
        if self.provider == "onnx" and not (self.artifact or self.model_class):
            raise ValueError("provider onnx needs `artifact` (the URL of the .onnx file) or a `class` that brings it")
        if self.resources.gpus and self.resources.vram_gb:
            raise ValueError("resources: give gpus (whole cards or a share) or vram_gb, not both")
        return self


class ModelConfig(Strict):
    """A logical model. The shorthand (provider at this level) is turned into `versions: {1.0.0: …}` by the loader;
    beside `versions`, a version's key at this level is the default of all versions."""

    task: Literal["chat", "embedding", "generic"] = "generic"
    description: str = ""
    signature: Signature | None = None
    versions: dict[SemVer, VersionConfig]
    traffic: dict[SemVer, float] = Field(default_factory=dict, description="weights; empty: all to the newest version")
    sticky: str | None = Field(default=None, description="header whose value keeps a caller on one version")
    mirror: dict[SemVer, float] = Field(default_factory=dict)
    fallback: tuple[str, ...] = ()
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    release: ReleaseConfig = ReleaseConfig()
    hedge_after_ms: Milliseconds | None = None

    def signature_of(self, version: str) -> Signature | None:
        """The interface of one version: its own, else the model's, else the one its task implies (None: unknown)."""
        return self.versions[version].signature or self.signature or TASK_SIGNATURES.get(self.task)


RULE_NAMES = frozenset({"body", "headers", "caller", "text", "model"})
"""What the CEL expression of a rule can look at."""


class RuleConfig(Strict):
    """One branch of a route. Exactly one condition, and exactly one of `model` and `rules` (a nested tree)."""

    name: str | None = None
    keyword: str | tuple[str, ...] | None = None
    regex: str | None = None
    cel: str | None = None
    similar_to: tuple[str, ...] | None = None
    threshold: float = Field(default=0.5, ge=-1, le=1)
    model: str | None = None
    version: SemVer | None = None
    rules: tuple[RuleConfig, ...] = ()

    @model_validator(mode="after")
    def _shape(self) -> RuleConfig:
        given = [name for name in ("keyword", "regex", "cel", "similar_to") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a rule has exactly one condition of keyword, regex, cel and similar_to (found {given or 'none'}); "
                "what no rule takes goes to the route's `default`"
            )
        if (self.model is None) == (not self.rules):
            raise ValueError("a rule names exactly one of `model` and nested `rules`")
        if self.version is not None and self.model is None:
            raise ValueError("`version` needs `model`")
        return self


class RouteConfig(Strict):
    """A virtual model: callers address it like a model; the first rule that holds chooses."""

    description: str = ""
    rules: tuple[RuleConfig, ...] = ()
    python: str | None = Field(default=None, description="module:function(question) -> model name")
    adaptive: dict[str, Any] | None = None
    default: str | None = None

    @model_validator(mode="after")
    def _can_choose(self) -> RouteConfig:
        if not (self.rules or self.python or self.adaptive or self.default):
            raise ValueError("a route needs rules, python, adaptive or a default")
        if self.rules and self.python:
            raise ValueError("a route has either rules or a python function, not both")
        return self


class Config(Strict):
    """One environment, after merging base.yaml, <environment>.yaml, HEADRACE__… variables and flags."""

    environment: Literal["dev", "staging", "prod"] = "dev"
    cluster: ClusterConfig = ClusterConfig()
    router: RouterConfig = RouterConfig()
    storage: StorageConfig = StorageConfig()
    state: StateConfig = StateConfig()
    auth: AuthConfig = AuthConfig()
    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    routes: dict[Name, RouteConfig] = Field(default_factory=dict)
    images: dict[str, ImageConfig] = Field(default_factory=dict)
    workflows: WorkflowsConfig = WorkflowsConfig()
    queues: dict[str, QueueConfig] = Field(default_factory=dict)
    webhooks: WebhooksConfig = WebhooksConfig()
    outbound_allow: tuple[str, ...] = ()
    outbound_breaker: BreakerConfig = Field(
        default=BreakerConfig(), description="of each host that http_request steps call"
    )
    limits: LimitsConfig = LimitsConfig()
