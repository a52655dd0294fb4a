"""The bucket port: the few operations that everything durable is built on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cluster.errors import InvalidInput

__all__ = ["Bucket", "check_key"]


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

    async def delete(self, key: str, *, once: bool = False) -> None:
        """Remove; an absent key is no error. `once`: send one request and no second one, whatever comes of it, so that
        an object that somebody makes anew is not removed by a repeat."""
        ...

    async def list(self, prefix: str, *, start_after: str = "") -> list[str]:
        """All keys that start with `prefix` and sort after `start_after`, in order."""
        ...

    async def size(self, key: str) -> int:
        """The object's length in bytes, without reading it. Raises `ObjectNotFound`."""
        ...

    async def modified(self, key: str) -> float:
        """When the object was written, in seconds since the epoch (by the bucket's clock). Raises `ObjectNotFound`."""
        ...

    async def upload(self, key: str, path: Path) -> None:
        """Like `put`, from a local file of any size that is never held in memory."""
        ...

    async def download(self, key: str, path: Path) -> None:
        """Like `get`, into a local file that is made or overwritten. Raises `ObjectNotFound`."""
        ...

    async def close(self) -> None: ...


def check_key(key: str) -> str:
    """The key itself, when it is a relative path without empty, `.` or `..` parts. Raises `InvalidInput`."""
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidInput(f"{key!r} is not an object key: use a relative path without empty, '.' or '..' parts")
    return key
