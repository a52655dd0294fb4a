"""From the routing table to what the store must know of models: their breakers, their names and signatures, and which
may be scaled to zero. Pure; sees the table by its shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from pipelines.spec.check import Known

__all__ = ["breaker_states", "sleepers", "with_deployed"]


class _Version(Protocol):
    @property
    def ejected(self) -> bool: ...
    @property
    def half_open(self) -> bool: ...


class _Model(Protocol):
    @property
    def versions(self) -> Mapping[str, _Version]: ...
    @property
    def config(self) -> Any: ...


def breaker_states(models: Mapping[str, _Model]) -> dict[str, str]:
    """`open` for models of which every version is ejected, `half_open` where one is being tried; others are closed.

    A model with a fallback is never open here: the router has somewhere else to go.
    """
    out: dict[str, str] = {}
    for name, model in models.items():
        versions = list(model.versions.values())
        if not versions or model.config.fallback:
            continue
        if all(version.ejected for version in versions):
            out[name] = "open"
        elif all(version.ejected or version.half_open for version in versions):
            out[name] = "half_open"
    return out


def sleepers(models: Mapping[str, _Model]) -> frozenset[str]:
    """Models of which a version may be scaled to zero."""
    return frozenset(
        name
        for name, model in models.items()
        if any(getattr(version, "wakes", False) for version in model.versions.values())
    )


def with_deployed(known: Known, models: Mapping[str, _Model], routes: Iterable[str]) -> Known:
    """`known` (of the configuration at the start) and what was deployed since: workflows may refer to either."""
    if known.models is None:
        return known
    signatures, tasks = dict(known.signatures), dict(known.tasks)
    for name, model in models.items():
        newest = max(model.versions, key=lambda version: tuple(map(int, version.split("."))), default=None)
        signature = getattr(model.versions[newest], "signature", None) if newest is not None else None
        if signature is not None:
            signatures[name] = signature
        tasks[name] = str(getattr(model.config, "task", "generic"))
    models_now = known.models | frozenset(models) | frozenset(routes)
    return replace(known, models=models_now, signatures=signatures, tasks=tasks)
