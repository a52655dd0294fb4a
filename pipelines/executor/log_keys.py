"""Where what an attempt printed stands: `logs/<shard>/<hour>/<minute>/<run>.<step>.<item>.<fence>.<attempt>`.

The name alone says whose log it is, so that one written while its step ran is found after the step was killed.
Logs are grouped by the time at which their run was submitted, as the archive is: few folders, and old ones go together.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.names import shard_of_run
from pipelines.executor.port import Attempt
from pipelines.run_store.runids import created_ms, order_key

__all__ = ["LogKey", "hour_prefix", "log_key", "parse_log_key", "run_prefix"]

_MINUTE_MS = 60_000
_NO_ITEM = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogKey:
    """Whose log a key names. `ulid` is the last part of the run's id."""

    ulid: str
    step_id: str
    item: int | None
    fence: int
    attempt: int


def log_key(attempt: Attempt) -> str:
    """The key of one attempt's log. The fence makes it unique: attempts count from 1 again after a resume."""
    item = _NO_ITEM if attempt.item is None else f"{attempt.item:07d}"
    return f"{run_prefix(attempt.run_id)}{attempt.step_id}.{item}.{attempt.fence:016d}.{attempt.attempt}"


def run_prefix(run_id: str, step_id: str | None = None, item: int | None = None) -> str:
    """What all keys of a run (of a step, of an item) begin with; they sort by step, item and fence."""
    ulid = order_key(run_id)
    try:
        minute = created_ms(ulid) // _MINUTE_MS
    except ValueError:
        minute = 0  # not an id that a run store gave
    prefix = f"{hour_prefix(shard_of_run(run_id) or 0, minute // 60)}{minute % 60:02d}/{ulid}."
    if step_id is not None:
        prefix += f"{step_id}."
        if item is not None:
            prefix += f"{item:07d}."
    return prefix


def hour_prefix(shard: int, hour: int) -> str:
    """What the keys of all runs of a shard that were submitted in this hour (since the epoch) begin with."""
    return f"logs/{shard}/{hour:08d}/"


def parse_log_key(key: str) -> LogKey | None:
    """The inverse of `log_key`; None for another object."""
    parts = key.rsplit("/", 1)[-1].split(".")
    if len(parts) != 5 or not (parts[3].isdigit() and parts[4].isdigit()):
        return None
    ulid, step_id, item = parts[:3]
    if item != _NO_ITEM and not item.isdigit():
        return None
    return LogKey(
        ulid=ulid,
        step_id=step_id,
        item=None if item == _NO_ITEM else int(item),
        fence=int(parts[3]),
        attempt=int(parts[4]),
    )
