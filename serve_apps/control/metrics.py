"""The control plane's metrics: weights, breakers, release steps and decisions, as Ray exports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster import metrics as names
from cluster.ray_metrics import make as ray_metric
from serve_apps.control.breaker import BreakerState
from serve_apps.control.state import ControlState
from serve_apps.control.tables import HOST, model_target

__all__ = ["MetricsExporter", "decisions", "gauges"]

_BREAKER = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


def gauges(state: ControlState) -> list[tuple[str, float, dict[str, str]]]:
    """(metric name, value, labels) of now. Pure."""
    rows: list[tuple[str, float, dict[str, str]]] = []
    for name, model in state.models.items():
        for version in model.versions:
            labels = {"model": name, "version": version}
            rows.append((names.TRAFFIC_WEIGHT.name, model.weights.get(version, 0.0), labels))
            breaker = state.breakers.get(model_target(name, version))
            rows.append((names.BREAKER_STATE.name, _BREAKER[breaker.state] if breaker else 0.0, labels))
        release = state.release_of(name)
        if release is not None:
            rows.append((names.RELEASE_STEP.name, release.percent, {"model": name, "version": release.candidate}))
    for target, breaker in state.breakers.items():
        if target.startswith(HOST):
            host = {"host": target.removeprefix(HOST)}
            rows.append((names.HOST_BREAKER_STATE.name, _BREAKER[breaker.state], host))
    return rows


def decisions(state: ControlState) -> dict[tuple[str, str], int]:
    """How often each move was made, by (model, move), over the releases that are kept. Pure."""
    found: dict[tuple[str, str], int] = {}
    for release in state.releases.values():
        for line in release.history:
            key = (release.model, str(line["move"]))
            found[key] = found.get(key, 0) + 1
    return found


class MetricsExporter:
    """Call `flush` every few seconds in a process of the cluster."""

    def __init__(self, make: Callable[[names.Metric], Any] = ray_metric) -> None:
        self._gauges = {
            metric.name: make(metric)
            for metric in (names.TRAFFIC_WEIGHT, names.BREAKER_STATE, names.HOST_BREAKER_STATE, names.RELEASE_STEP)
        }
        self._decisions = make(names.RELEASE_DECISIONS)
        self._counted: dict[tuple[str, str], int] | None = None
        self._shown: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def flush(self, state: ControlState) -> None:
        shown = set()
        for name, value, labels in gauges(state):
            self._gauges[name].set(value, labels)
            shown.add((name, tuple(labels.items())))
        for name, items in self._shown - shown:  # what is gone has no weight and no breaker any more
            self._gauges[name].set(0.0, dict(items))
        self._shown = shown
        now = decisions(state)
        for key, count in now.items():
            # What an earlier life of this actor decided was counted by it.
            grown = count - (self._counted.get(key, 0) if self._counted is not None else count)
            if grown > 0:
                self._decisions.inc(grown, {"model": key[0], "decision": key[1]})
        self._counted = now
