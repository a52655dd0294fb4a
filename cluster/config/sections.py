"""The sections of an environment beside its models and routes: cluster, router, storage, state, limits and the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, model_validator

from cluster.config.quantities import Seconds
from cluster.config.strict import SecretRef, Strict

__all__ = [
    "AuthConfig",
    "ClusterConfig",
    "ImageConfig",
    "LimitsConfig",
    "QueueConfig",
    "RetentionConfig",
    "RouterConfig",
    "StateConfig",
    "StorageConfig",
    "WebhooksConfig",
    "WorkflowsConfig",
]


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
