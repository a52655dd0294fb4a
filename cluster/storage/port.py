"""The bucket port: the five operations that everything durable is built on."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Bucket"]


class Bucket(Protocol):
    """Objects by key under one URL. Keys are `/`-separated, relative, and never contain `..`.

    All methods are safe to call from several tasks at once. Failures that may pass raise `StorageUnavailable`;
    everything else that goes wrong raises another `StorageError`. A call that raised `StorageUnavailable` may have
    happened all the same (a lost answer): callers must cope with that.
    """

    @property
    def url(self) -> str: ...

    async def get(self, key: str) -> bytes:
        """The whole object. Raises `ObjectNotFound`."""
        ...

    async def create(self, key: str, data: bytes) -> None:
        """Write only if absent, atomically among all writers, durable on return. Raises `AlreadyExists`."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Write or overwrite, durable on return."""
        ...

    async def delete(self, key: str) -> None:
        """Remove; an absent key is no error."""
        ...

    async def list(self, prefix: str, *, start_after: str = "") -> list[str]:
        """All keys that start with `prefix` and sort after `start_after`, in order."""
        ...

    async def close(self) -> None: ...
