"""The HTTP surface's way to blobs: uploads to the bucket and contents back, in chunks; large ones through a file."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput
from cluster.storage import BlobRef, BlobStore, Bucket

__all__ = ["StoredBlobs"]

SMALL = 4 << 20
"""Up to this many bytes a blob is moved in memory; a larger one passes through a temporary file."""
CHUNK = 1 << 20


class StoredBlobs:
    """`BlobPort` (serve_apps/http/runs.py) over a bucket that is opened on first use."""

    def __init__(self, *, open_bucket: Callable[[], Bucket]) -> None:
        self._open_bucket = open_bucket
        self._store: BlobStore | None = None

    async def put_stream(self, chunks: AsyncIterator[bytes], *, media_type: str, name: str) -> dict[str, Any]:
        """Store content, return its reference."""
        store = self._blobs()
        head: list[bytes] = []
        size = 0
        async for chunk in chunks:
            head.append(chunk)
            size += len(chunk)
            if size > SMALL:
                break
        else:
            return (await store.put(b"".join(head), media_type=media_type, name=name)).to_json()
        with tempfile.TemporaryDirectory(prefix="headrace-upload-") as folder:
            path = Path(folder) / "content"
            with path.open("wb") as file:
                for chunk in head:
                    await asyncio.to_thread(file.write, chunk)
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
            return (await store.put_file(path, media_type=media_type, name=name)).to_json()

    async def stream(self, reference: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """The content in chunks, checked against its hash before the first is given."""
        store = self._blobs()
        parsed = _parsed(reference)
        # Not what the reference says: it may have come from a caller, and decides what is held in memory.
        if await store.bucket.size(parsed.key) <= SMALL:
            yield await store.get(parsed)
            return
        with tempfile.TemporaryDirectory(prefix="headrace-download-") as folder:
            path = Path(folder) / "content"
            await store.get_file(parsed, path)
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    yield chunk

    async def size(self, reference: Mapping[str, Any]) -> int:
        """How many bytes the blob has, whatever its reference says. Raises `ObjectNotFound`."""
        return await self._blobs().bucket.size(_parsed(reference).key)

    async def read(self, key: str) -> bytes:
        """A small object that is no blob, such as a log, as it is now."""
        return await self._blobs().bucket.get(key)

    async def close(self) -> None:
        """Close the bucket, if it was opened."""
        if self._store is not None:
            await self._store.bucket.close()
            self._store = None

    def _blobs(self) -> BlobStore:
        if self._store is None:
            self._store = BlobStore(self._open_bucket())
        return self._store


def _parsed(reference: Mapping[str, Any]) -> BlobRef:
    parsed = BlobRef.parse(reference)
    if parsed is None:
        raise InvalidInput("not a blob reference: it needs $blob")
    return parsed
