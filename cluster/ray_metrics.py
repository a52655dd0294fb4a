"""Makes the instruments of `ray.util.metrics` from `cluster.metrics`. Imported without Ray; making one needs it."""

from __future__ import annotations

from typing import Any

from cluster.metrics import Kind, Metric

__all__ = ["make"]


def make(metric: Metric) -> Any:
    """The Counter (`inc`), Gauge (`set`) or Histogram (`observe`) of a metric."""
    from ray.util import metrics

    if metric.kind is Kind.COUNTER:
        return metrics.Counter(metric.name, description=metric.help, tag_keys=metric.labels)
    if metric.kind is Kind.GAUGE:
        return metrics.Gauge(metric.name, description=metric.help, tag_keys=metric.labels)
    return metrics.Histogram(
        metric.name, description=metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels
    )
