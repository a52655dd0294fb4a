"""What an owner of a log may choose, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LogOptions", "LogStats"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Limits and tactics. Sizes in bytes, times in seconds.

    After a write that took longer than `slow_write_s`, or had to be repeated, the owner first looks whether another one
    has taken over meanwhile, before anybody acts on what was written.
    `collect` removes segments that an older snapshot than the newest covers; without it the whole history stays.
    """

    segment_bytes: int = 4 << 20
    append_bytes: int = 64 << 20
    pending_bytes: int = 256 << 20
    compress: bool = True
    collect: bool = True
    parallel_reads: int = 32
    retry_initial_s: float = 0.05
    retry_max_s: float = 5.0
    slow_write_s: float = 1.0


@dataclass
class LogStats:
    """Counts since this owner opened the log. `segments` is bucket writes; `retries` those that had to be repeated."""

    appends: int = 0
    records: int = 0
    segments: int = 0
    bytes_written: int = 0
    retries: int = 0
    snapshots: int = 0
    collected: int = 0
