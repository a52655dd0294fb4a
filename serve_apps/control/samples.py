"""What is counted about one version during one step of a release: mergeable, small, JSON-safe. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import BaseModel, Field

__all__ = ["LOG_RATIO", "SMALLEST_MS", "Counts", "bucket_of", "bucket_value", "buckets_of_ratio"]

_RATIO = 1.02
LOG_RATIO = math.log(_RATIO)
SMALLEST_MS = 0.01


def bucket_of(latency_ms: float) -> int:
    """The logarithmic bucket of a latency: buckets grow by 2 %, so a quantile is right within 1 % (the sketch of
    Masson, Rim and Lee, "DDSketch", VLDB 2019, with fixed bucket limits)."""
    return max(0, math.ceil(math.log(max(latency_ms, SMALLEST_MS) / SMALLEST_MS) / LOG_RATIO - 1e-9))


def bucket_value(bucket: int) -> float:
    """The latency (ms) that stands for a bucket: the middle of it."""
    return SMALLEST_MS * _RATIO ** (bucket - 0.5) if bucket > 0 else SMALLEST_MS


def buckets_of_ratio(ratio: float) -> float:
    """How many buckets a factor between two latencies is."""
    return math.log(ratio) / LOG_RATIO


class Counts(BaseModel):
    """Requests, errors, latencies (bucket -> count) and feedback (scores 0 to 1) of one version in one step."""

    requests: int = 0
    errors: int = 0
    latency: dict[int, int] = Field(default_factory=dict)
    feedback_n: int = 0
    feedback_sum: float = 0.0

    def add(self, other: Counts) -> None:
        """Merge `other` into this."""
        self.requests += other.requests
        self.errors += other.errors
        self.feedback_n += other.feedback_n
        self.feedback_sum += other.feedback_sum
        for bucket, count in other.latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count

    def add_latencies(self, latencies_ms: Iterable[float]) -> None:
        for value in latencies_ms:
            bucket = bucket_of(value)
            self.latency[bucket] = self.latency.get(bucket, 0) + 1

    @property
    def latencies(self) -> int:
        """How many latencies were kept."""
        return sum(self.latency.values())

    def quantile_bucket(self, q: float) -> int | None:
        """The bucket that holds the q-quantile; None without samples."""
        total = self.latencies
        if total == 0:
            return None
        rank, seen = math.ceil(q * total), 0
        for bucket in sorted(self.latency):
            seen += self.latency[bucket]
            if seen >= rank:
                return bucket
        return max(self.latency)

    def quantile_ms(self, q: float) -> float | None:
        bucket = self.quantile_bucket(q)
        return None if bucket is None else round(bucket_value(bucket), 3)

    def above(self, bucket: float) -> int:
        """How many latencies lie in buckets above `bucket` (which may be fractional)."""
        return sum(count for key, count in self.latency.items() if key > bucket)

    @property
    def empty(self) -> bool:
        return not (self.requests or self.feedback_n or self.latency)
