"""Turns the router's counters into Ray metrics, about once a second and never on a request's path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cluster import metrics as names
from cluster.metrics import Metric
from cluster.ray_metrics import make as ray_metric
from serve_apps.router.service import Router
from serve_apps.router.stats import BUCKETS_S

__all__ = ["MetricsExporter"]

# What is observed for a count of a bucket: its middle, so that the histogram's sum stays close to the truth.
_MIDDLES = tuple(
    (low + high) / 2 for low, high in zip((0.0, *BUCKETS_S), (*BUCKETS_S, BUCKETS_S[-1] * 1.5), strict=True)
)


class MetricsExporter:
    """The metrics of one router process. `make` gives the instrument of a metric."""

    def __init__(self, make: Callable[[Metric], Any] = ray_metric) -> None:
        self._requests = make(names.REQUESTS)
        self._seconds = make(names.REQUEST_SECONDS)
        self._retries = make(names.RETRIES)
        self._fallbacks = make(names.FALLBACKS)
        self._hedges = make(names.HEDGES)
        self._mirrored = make(names.MIRRORED)
        self._in_flight = make(names.IN_FLIGHT)
        self._merged = make(names.MERGED_SIZE)
        self._revision = make(names.TABLE_REVISION)

    async def flush(self, router: Router) -> None:
        """Export everything since the last flush, giving way to requests in between: Ray takes one sample at a time."""
        # Idle models too: Ray forgets a gauge that is not set anew.
        in_flight = dict.fromkeys(router.table.models, 0)
        for row in router.stats.metric_rows():
            labels = {"model": row.model, "version": row.version}
            for (rule, outcome), count in row.outcomes.items():
                self._requests.inc(count, {**labels, "rule": rule or "direct", "outcome": outcome})
            for count, middle in zip(row.buckets, _MIDDLES, strict=True):
                await _observe(self._seconds, middle, labels, count)
            in_flight[row.model] = in_flight.get(row.model, 0) + row.in_flight
        for model, value in in_flight.items():
            self._in_flight.set(value, {"model": model})
        for (model, reason), count in router.stats.take_retries().items():
            self._retries.inc(count, {"model": model, "reason": reason})
        for (model, fallback), count in router.stats.take_fallbacks().items():
            self._fallbacks.inc(count, {"model": model, "fallback": fallback})
        for model, count in router.stats.take_hedges().items():
            self._hedges.inc(count, {"model": model})
        for (model, version, outcome), count in router.stats.take_copies().items():
            self._mirrored.inc(count, {"model": model, "version": version, "outcome": outcome})
        for model, version, size, count in router.take_merged():
            await _observe(self._merged, size, {"model": model, "version": version}, count)
        self._revision.set(router.table.revision)


async def _observe(histogram: Any, value: float, labels: dict[str, str], count: int) -> None:
    for number in range(count):
        histogram.observe(value, labels)
        if number % 50 == 49:
            await asyncio.sleep(0)
