"""Turns the router's counters into Ray metrics, about once a second and never on a request's path."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster import metrics as names
from cluster.metrics import Kind, Metric
from serve_apps.router.service import Router
from serve_apps.router.stats import BUCKETS_S

__all__ = ["MetricsExporter"]

# What is observed for a count of a bucket: its middle, so that the histogram's sum stays close to the truth.
_MIDDLES = tuple(
    (low + high) / 2 for low, high in zip((0.0, *BUCKETS_S), (*BUCKETS_S, BUCKETS_S[-1] * 1.5), strict=True)
)


class MetricsExporter:
    """The metrics of one router process."""

    def __init__(self) -> None:
        self._requests = _make(names.REQUESTS)
        self._seconds = _make(names.REQUEST_SECONDS)
        self._retries = _make(names.RETRIES)
        self._fallbacks = _make(names.FALLBACKS)
        self._hedges = _make(names.HEDGES)
        self._mirrored = _make(names.MIRRORED)
        self._in_flight = _make(names.IN_FLIGHT)
        self._merged = _make(names.MERGED_SIZE)
        self._revision = _make(names.TABLE_REVISION)
        self._busy: set[str] = set()

    async def flush(self, router: Router) -> None:
        """Export everything since the last flush, giving way to requests in between: Ray takes one sample at a time."""
        in_flight: dict[str, int] = dict.fromkeys(self._busy, 0)
        for row in router.stats.metric_rows():
            labels = {"model": row.model, "version": row.version}
            for (rule, outcome), count in row.outcomes.items():
                self._requests.inc(count, {**labels, "rule": rule or "direct", "outcome": outcome})
            for count, middle in zip(row.buckets, _MIDDLES, strict=True):
                await _observe(self._seconds, middle, labels, count)
            in_flight[row.model] = in_flight.get(row.model, 0) + row.in_flight
        for model, value in in_flight.items():
            self._in_flight.set(value, {"model": model})
        self._busy = {model for model, value in in_flight.items() if value}
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


def _make(metric: Metric) -> Any:
    from ray.util import metrics

    if metric.kind is Kind.COUNTER:
        return metrics.Counter(metric.name, description=metric.help, tag_keys=metric.labels)
    if metric.kind is Kind.GAUGE:
        return metrics.Gauge(metric.name, description=metric.help, tag_keys=metric.labels)
    return metrics.Histogram(
        metric.name, description=metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels
    )
