"""Numbers that a run store works by. Times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config.models import Config
from cluster.layout import Layouts

__all__ = ["StoreSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """`submit_linger_s` and `step_linger_s`: how long a submit, or a step's result, may wait for company in one bucket
    write while the log is busy. `snapshot_every`: log segments between snapshots; `snapshot_records`: or that many
    records, and no fewer than some per run in memory, so that snapshots stay a small part of the work.
    `archive_batch` finished runs are moved to the bucket together, at the latest `archive_after_s` after the first of
    them ended. `durable_timeout_s`: how long a caller waits for durability before it is told to come again.
    `retain_runs_s`: how long finished runs are kept (None: for ever); `blob_grace_s`: how long a blob that no run names
    is kept; `collect_every_s`: how often both are looked at. `max_queued_runs` is this shard's part of the limit;
    `shards`: how many hold runs.
    """

    max_queued_runs: int = 100_000
    max_input_bytes: int = 8 << 20
    spill_bytes: int = 64 << 10
    submit_linger_s: float = 0.0185
    step_linger_s: float = 0.002
    snapshot_every: int = 2000
    snapshot_records: int = 50_000
    archive_batch: int = 1000
    archive_after_s: float = 60.0
    durable_timeout_s: float = 10.0
    read_timeout_s: float = 5.0
    max_wait_s: float = 60.0
    webhook_parallel: int = 32
    shards: int = 1
    retain_runs_s: float | None = None
    blob_grace_s: float = 7 * 86_400.0
    collect_every_s: float = 86_400.0
    watch_owner_s: float = 5.0

    @classmethod
    def from_config(cls, config: Config, layouts: Layouts) -> StoreSettings:
        """One shard's part of an environment's configuration."""
        return cls(
            max_queued_runs=-(-config.limits.max_queued_runs // layouts.shards),
            spill_bytes=config.state.blob_threshold_kb * 1024,
            snapshot_every=config.state.snapshot_every,
            shards=layouts.total,
            retain_runs_s=config.state.retention.runs,
            blob_grace_s=config.state.retention.blobs,
        )
