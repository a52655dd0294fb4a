"""A host's figures as Ray metrics."""

from __future__ import annotations

from typing import Any

from cluster import metrics
from cluster.ray_metrics import make

__all__ = ["RayHostMetrics"]


class RayHostMetrics:
    """Implements `HostMetrics`. Recording is in process; Ray's agent exports it."""

    def __init__(self, model: str, version: str):
        def made(metric: metrics.Metric) -> Any:
            instrument = make(metric)
            instrument.set_default_tags({"model": model, "version": version})
            return instrument

        self._size = made(metrics.BATCH_SIZE)
        self._compute = made(metrics.COMPUTE_SECONDS)
        self._waited = made(metrics.QUEUE_SECONDS)
        self._depth = made(metrics.QUEUE_DEPTH)

    def batch(self, *, size: int, seconds: float) -> None:
        self._size.observe(size)
        self._compute.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def queue(self, depth: int) -> None:
        self._depth.set(depth)
