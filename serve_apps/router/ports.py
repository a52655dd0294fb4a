"""What the router needs from outside: the hosts of versions, and embeddings for semantic rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from serve_apps.protocol import HostPort

__all__ = ["Embedder", "HostProvider"]


class HostProvider(Protocol):
    """Finds the host of a version by its application's name."""

    def host(self, app: str) -> HostPort:
        """Cheap and without waiting: it is called for every hop. A host that is gone fails when it is called."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors."""

    async def __call__(self, texts: Sequence[str]) -> Mapping[str, Sequence[float]]: ...
