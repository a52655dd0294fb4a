"""From the routing table to what the engine must know of a model's breakers. Pure; sees the table by its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["breaker_states"]


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
