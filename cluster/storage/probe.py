"""The start-up check of a bucket: is create-if-absent honoured, and was the bucket written by a format we read?

It runs at every start and remembers no verdict: a bucket may have been put behind another server since.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from cluster.clock import IdSource, SystemIds
from cluster.errors import (
    AlreadyExists,
    CorruptObject,
    FormatVersionUnsupported,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    UnsafeBucket,
)
from cluster.storage.port import Bucket

__all__ = ["BUCKET_FORMAT", "MARKER", "check_bucket", "read_format"]

BUCKET_FORMAT = 1
"""The layout of the whole bucket: which folders there are and what stands in them."""
MARKER = "headrace.json"

_RIVALS = 4
_ROUNDS = 3


async def check_bucket(bucket: Bucket, *, ids: IdSource | None = None) -> None:
    """Prove that the bucket is safe, and claim it for this format version.

    Raises `FormatVersionUnsupported` before anything is written; `UnsafeBucket` when two writers could create one
    object, or a written object is not listed at once; `StorageError` and `StorageUnavailable` as they come.
    """
    found = await read_format(bucket)
    await _check_create(bucket, ids or SystemIds())
    if found is None:
        marker = {"product": "headrace", "format": BUCKET_FORMAT}
        with contextlib.suppress(AlreadyExists):
            await bucket.create(MARKER, json.dumps(marker).encode())
        await read_format(bucket)  # whoever won the race may be another release


async def read_format(bucket: Bucket) -> int | None:
    """The bucket's format version, None for a new bucket.

    Raises `FormatVersionUnsupported` for another version and `CorruptObject` when the marker is not ours.
    """
    try:
        data = await bucket.get(MARKER)
    except ObjectNotFound:
        return None
    try:
        marker = json.loads(data)
        product, version = marker["product"], marker["format"]
    except (ValueError, TypeError, KeyError):
        product, version = None, None
    if product != "headrace" or not isinstance(version, int):
        raise CorruptObject(
            f"{bucket.url}/{MARKER} is not headrace's: is this another program's bucket?", details={"key": MARKER}
        )
    if version != BUCKET_FORMAT:
        raise FormatVersionUnsupported(
            f"the bucket {bucket.url} has format {version}; this release works with {BUCKET_FORMAT}: use a "
            "release that fits, or another storage.url",
            details={"key": MARKER, "found": version, "supported": BUCKET_FORMAT},
        )
    return version


async def _check_create(bucket: Bucket, ids: IdSource) -> None:
    for _ in range(_ROUNDS):
        folder = f"probe/{ids.ulid()}"
        try:
            await _one_after_another(bucket, f"{folder}/twice")
            await _racing(bucket, f"{folder}/race")
            if await bucket.list(f"{folder}/") != [f"{folder}/race", f"{folder}/twice"]:
                raise UnsafeBucket(
                    f"the bucket {bucket.url} does not list objects right after they are written, so a recovery would "
                    "miss the newest ones: use a server with strongly consistent listing"
                )
            return
        except StorageUnavailable as error:
            last = error
        finally:
            for name in ("twice", "race"):
                with contextlib.suppress(StorageError):
                    await bucket.delete(f"{folder}/{name}")
    raise last


async def _one_after_another(bucket: Bucket, key: str) -> None:
    await bucket.create(key, b"first")
    try:
        await bucket.create(key, b"second")
    except AlreadyExists:
        if await bucket.get(key) == b"first":
            return
    raise _unsafe(bucket, "it overwrote an existing object in spite of If-None-Match: *")


async def _racing(bucket: Bucket, key: str) -> None:
    async def rival(number: int) -> int | None:
        try:
            await bucket.create(key, b"rival %d" % number)
        except AlreadyExists:
            return None
        return number

    winners = [number for number in await asyncio.gather(*map(rival, range(_RIVALS))) if number is not None]
    if len(winners) != 1 or await bucket.get(key) != b"rival %d" % winners[0]:
        raise _unsafe(bucket, f"{len(winners)} of {_RIVALS} writers that raced for one object were told that they won")


def _unsafe(bucket: Bucket, why: str) -> UnsafeBucket:
    return UnsafeBucket(
        f"the bucket {bucket.url} is not safe: {why}. Two owners could both think that they own the log and overwrite "
        "each other; use a server that honours conditional writes (AWS S3, MinIO, SeaweedFS, Ceph) or file://"
    )
