"""What a host counts about itself, and where its figures go."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Counts", "HostMetrics", "NoMetrics", "resident_bytes"]

_KEEP = 512


class HostMetrics(Protocol):
    """Where a host's figures go."""

    def batch(self, *, size: int, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def queue(self, depth: int) -> None: ...


class NoMetrics:
    """Drops every figure."""

    def batch(self, *, size: int, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def queue(self, depth: int) -> None: ...


@dataclass(slots=True)
class Counts:
    """Since the start; latencies of the most recent requests only."""

    requests: int = 0
    rows: int = 0
    errors: int = 0
    batches: int = 0
    batch_items: int = 0
    _latencies_s: list[float] = field(default_factory=list)

    def answered(self, seconds: float) -> None:
        """A request got its answer."""
        self._latencies_s.append(seconds)
        if len(self._latencies_s) > _KEEP:
            del self._latencies_s[: _KEEP // 2]

    def ran(self, items: int) -> None:
        """The model was called once."""
        self.batches += 1
        self.batch_items += items

    def to_dict(self) -> dict[str, Any]:
        """Counts, mean batch size, and latency quantiles in seconds (None before the first answer)."""
        ordered = sorted(self._latencies_s)
        return {
            "requests": self.requests,
            "rows": self.rows,
            "errors": self.errors,
            "batches": self.batches,
            "mean_batch": self.batch_items / self.batches if self.batches else 0.0,
            "latency_p50_s": _quantile(ordered, 0.5),
            "latency_p95_s": _quantile(ordered, 0.95),
        }


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else None


def resident_bytes() -> int:
    """Memory that this process holds now; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
