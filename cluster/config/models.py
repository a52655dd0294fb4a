"""The configuration as types: what may stand in configs/*.yaml, and nothing else. Reads no file, no environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from cluster.config.quantities import Bytes, Milliseconds, Seconds

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

Name = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,62}$")]
"""A model's, route's or workflow's name: it becomes part of application names and metric labels."""
SemVer = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


class Strict(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is none (`.inf`, `.nan`): no time, share or limit
    can be compared with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class SecretRef(Strict):
    """A secret by the name of the variable that holds it. The value is looked up where it is used and never stored."""

    variable: str
    default: SecretStr | None = Field(default=None, exclude=True, repr=False)


_TENSOR = re.compile(r"^\s*([A-Za-z]+\d*)\s*(?:\[([-\d,\s]*)\])?\s*(\?)?\s*$")


class TensorSpec(Strict):
    """One named input or output. `shape` is per item, without the batch dimension; -1 is a free dimension.

    Shorthand: `FP32[384]`, `BYTES`, and `JSON?` for an optional one.
    """

    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "FP32", "FP64", "BYTES", "JSON",
    ]  # fmt: skip
    shape: tuple[int, ...] = ()
    optional: bool = False

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _TENSOR.match(value)
        if match is None:
            raise ValueError(f"{value!r} is not a tensor type: write for example BYTES, FP32[384] or JSON?")
        dims = [part.strip() for part in (match.group(2) or "").split(",") if part.strip()]
        return {
            "datatype": match.group(1).upper(),
            "shape": [int(dim) for dim in dims],
            "optional": bool(match.group(3)),
        }


class Signature(Strict):
    """The interface of a model: Open Inference Protocol names, types and per-item shapes."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


TASK_SIGNATURES: Mapping[str, Signature] = {
    "chat": Signature(
        inputs={
            "prompt": TensorSpec(datatype="BYTES", optional=True),
            "messages": TensorSpec(datatype="JSON", optional=True),
        },
        outputs={"text": TensorSpec(datatype="BYTES")},
    ),
    "embedding": Signature(
        inputs={"text": TensorSpec(datatype="BYTES")},
        outputs={"embedding": TensorSpec(datatype="FP32", shape=(-1,))},
    ),
}
"""The signature of a model that states none, by its task."""


class Resources(Strict):
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    vram_gb: float | None = Field(default=None, gt=0)
    memory: Bytes | None = Field(default=None, gt=0, description="bytes; '2GiB' is accepted")
    accelerator: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)


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


class ClusterConfig(Strict):
    address: str | None = Field(default=None, description="an existing Ray cluster; None: headrace starts one")
    num_cpus: float | None = None
    num_gpus: float | None = None
    object_store_mb: int = 512
    state_dir: str = "./.headrace"


class RouterConfig(Strict):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.5, ge=0)
    max_body_mb: float = Field(default=32, gt=0)
    timeout_s: Seconds = 60


class StorageConfig(Strict):
    url: str = "file://./.headrace/bucket"
    endpoint_url: str | None = None
    region: str | None = None
    path_style: bool = True
    access_key: SecretRef | SecretStr | None = None
    secret_key: SecretRef | SecretStr | None = None


class RetentionConfig(Strict):
    """What the bucket keeps. A step must not hold longer than `blobs` less a day what it saved and has not returned."""

    runs: Annotated[Seconds, Field(ge=86_400)] | None = Field(
        default=None, description="finished runs and their logs; '90d' is accepted; null: for ever"
    )
    blobs: Seconds = Field(
        default=7 * 86_400, ge=2 * 86_400, description="files and values that no run needs any more, after their upload"
    )


class StateConfig(Strict):
    shards: int = Field(default=1, ge=1, le=64)
    blob_threshold_kb: int = Field(default=64, ge=1)
    snapshot_every: int = Field(default=2000, ge=10, description="segments between two snapshots")
    retention: RetentionConfig = RetentionConfig()


class AuthConfig(Strict):
    enabled: bool = True


class ImageConfig(Strict):
    """What an `image:` of a workflow step means here. Exactly one field."""

    container: str | None = None
    callable: str | None = None
    local: bool | None = Field(default=None, description="run the step's script in the workers' own environment")

    @model_validator(mode="after")
    def _one(self) -> ImageConfig:
        given = [name for name in ("container", "callable", "local") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of container, callable and local (found {given or 'none'})")
        return self


class QueueConfig(Strict):
    concurrency: int = Field(ge=1)


class WebhooksConfig(Strict):
    secret: SecretRef | SecretStr | None = None
    allow: tuple[str, ...] = ()


class WorkflowsConfig(Strict):
    dir: str = "workflows"


class LimitsConfig(Strict):
    max_parallel_steps: int = Field(default=256, ge=1)
    max_foreach_items: int = 10_000
    max_queued_runs: int = 100_000
    max_nesting: int = 8
    max_log_kb: int = 1024
    max_output_mb: int = 256
    max_run_mb: int = Field(
        default=64,
        ge=1,
        description="results and errors that one run holds in its record; larger values go to the bucket before",
    )
    share_steps_below_ms: float = Field(
        default=5.0,
        ge=0,
        le=20,
        description="python steps that take less on average may travel several to a Ray task; 0: never",
    )


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
