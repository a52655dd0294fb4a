"""What an executor and its workers need to know of an environment; pickled into the tasks, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.config.models import Config, ImageConfig, StorageConfig
from pipelines.executor.script_runner import RunnerLimits
from pipelines.executor.sharing import SharingRules

__all__ = ["ExecutorSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """`storage` names its secrets; each worker looks them up itself (environment or secrets file).

    `kill_grace_s`: seconds between asking a step to stop and killing its worker. `fixed_size`: the cluster does not
    grow, so a step that fits on no node can be refused at once. `max_batch`, `merge_delay_s`: bounds of a merged
    inference call; `task_bytes`: files over this many bytes in one merged call are read by a task, not by the caller.
    `sharing`: when short steps travel in one task.
    """

    storage: StorageConfig
    environment: str = "dev"
    images: Mapping[str, ImageConfig] = field(default_factory=dict)
    outbound_allow: tuple[str, ...] = ()
    limits: RunnerLimits = field(default_factory=RunnerLimits)
    fixed_size: bool = True
    client_factory: str = "headrace:Client.in_cluster"
    max_batch: int = 32
    merge_delay_s: float = 0.003
    calls_in_flight: int = 4
    task_bytes: int = 1024 * 1024
    sharing: SharingRules = field(default_factory=SharingRules)

    @classmethod
    def from_config(cls, config: Config) -> ExecutorSettings:
        """The executor's part of an environment's configuration."""
        return cls(
            storage=config.storage,
            environment=config.environment,
            images=config.images,
            outbound_allow=config.outbound_allow,
            limits=RunnerLimits(
                blob_threshold=config.state.blob_threshold_kb * 1024,
                max_output=config.limits.max_output_mb * 1024 * 1024,
                max_log=config.limits.max_log_kb * 1024,
            ),
            fixed_size=config.cluster.address is None,
            sharing=SharingRules(short_s=config.limits.share_steps_below_ms / 1000),
        )
