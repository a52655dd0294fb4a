"""The workers' blocking blob access over a bucket: references are plain JSON on this side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput, StorageError
from cluster.storage import BlobRef, BlockingBlobs, Bucket

__all__ = ["BucketBlobs"]


class BucketBlobs:
    """Implements `Blobs`. The bucket lives on its own thread, see `BlockingBlobs`."""

    def __init__(self, bucket: Bucket):
        self._blobs = BlockingBlobs(bucket)
        self._together: list[Future[None]] | None = None

    def get_blocking(self, reference: Mapping[str, Any]) -> bytes:
        return self._blobs.get(_parse(reference))

    def fetch_blocking(self, reference: Mapping[str, Any], path: Path) -> None:
        self._blobs.get_file(_parse(reference), path)

    def put_blocking(self, data: bytes, *, media_type: str, name: str) -> dict[str, Any]:
        return self._blobs.put(data, media_type=media_type, name=name).to_json()

    def put_file_blocking(self, path: Path, *, media_type: str, name: str) -> dict[str, Any]:
        return self._blobs.put_file(path, media_type=media_type, name=name).to_json()

    def put_log_blocking(self, key: str, text: bytes) -> None:
        self._blobs.put_at(key, text)

    def put_last_log_blocking(self, key: str, text: bytes) -> None:
        if self._together is None:
            self._blobs.put_at(key, text)
        else:
            self._together.append(self._blobs.begin_put_at(key, text))

    @contextmanager
    def logs_together(self) -> Iterator[None]:
        together: list[Future[None]] = []
        self._together = together
        try:
            yield
        finally:
            self._together = None
            for write in together:
                with suppress(StorageError):
                    write.result()

    def close(self) -> None:
        self._blobs.close()


def _parse(reference: Mapping[str, Any]) -> BlobRef:
    # A bundle is named by its digest alone, so its size is not known here.
    parsed = BlobRef.parse({"size": 0, **reference})
    if parsed is None:
        raise InvalidInput("not a blob reference: it needs $blob")
    return parsed
