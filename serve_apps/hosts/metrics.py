"""A host's figures as Ray metrics."""

from __future__ import annotations

from cluster import metrics

__all__ = ["RayHostMetrics"]


class RayHostMetrics:
    """Implements `HostMetrics`. Recording is in process; Ray's agent exports it."""

    def __init__(self, model: str, version: str):
        from ray.util.metrics import Gauge, Histogram

        def histogram(metric: metrics.Metric) -> Histogram:
            made = Histogram(
                metric.name, description=metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels
            )
            made.set_default_tags({"model": model, "version": version})
            return made

        self._size = histogram(metrics.BATCH_SIZE)
        self._compute = histogram(metrics.COMPUTE_SECONDS)
        self._waited = histogram(metrics.QUEUE_SECONDS)
        self._depth = Gauge(
            metrics.QUEUE_DEPTH.name, description=metrics.QUEUE_DEPTH.help, tag_keys=metrics.QUEUE_DEPTH.labels
        )
        self._depth.set_default_tags({"model": model, "version": version})

    def batch(self, *, size: int, seconds: float) -> None:
        self._size.observe(size)
        self._compute.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def queue(self, depth: int) -> None:
        self._depth.set(depth)
