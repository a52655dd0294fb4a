"""A stand-in for Ray's metrics, for tests of what is exported."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.metrics import Kind, Metric

__all__ = ["RecordedMetrics"]


class RecordedMetrics:
    """Give `make` to an exporter; what it counted, set and observed then stands in `values`, by metric and labels.

    Refuses labels that the metric does not declare, as Ray does. `forget_gauges()` is what Ray does with gauges that
    are not set anew.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[tuple[str, str], ...], list[float]]] = {}
        self._gauges: set[str] = set()

    def make(self, metric: Metric) -> _Instrument:
        if metric.kind is Kind.GAUGE:
            self._gauges.add(metric.name)
        return _Instrument(metric, self.values.setdefault(metric.name, {}))

    def of(self, metric: Metric, **labels: str) -> list[float]:
        """The total of a counter, the last value of a gauge, what a histogram observed; empty when there is none."""
        return self.values.get(metric.name, {}).get(tuple(sorted(labels.items())), [])

    def forget_gauges(self) -> None:
        for name in self._gauges:
            self.values[name].clear()


class _Instrument:
    def __init__(self, metric: Metric, values: dict[tuple[tuple[str, str], ...], list[float]]) -> None:
        self._metric, self._values = metric, values

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        kept = self._kept(tags)
        kept[:] = [sum(kept) + value]

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        self._kept(tags)[:] = [value]

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        self._kept(tags).append(value)

    def _kept(self, tags: Mapping[str, str] | None) -> list[float]:
        given = dict(tags or {})
        if given.keys() != set(self._metric.labels):
            raise ValueError(f"{self._metric.name} has the labels {self._metric.labels}, not {sorted(given)}")
        return self._values.setdefault(tuple(sorted(given.items())), [])
