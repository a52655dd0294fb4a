"""The probe against servers that would lose data."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import AlreadyExists, UnsafeBucket
from cluster.storage import open_bucket
from cluster.storage.probe import check_bucket
from cluster.storage.testing import MemoryBucket
from tests.s3_server import rclone


@pytest.mark.s3
async def test_rclone_is_refused(tmp_path: Path) -> None:
    """rclone's S3 server ignores If-None-Match and is refused with a sentence that says so."""
    with rclone(tmp_path / "rclone") as server:
        bucket = open_bucket(server.config("x"))
        try:
            with pytest.raises(UnsafeBucket, match="If-None-Match"):
                await check_bucket(bucket)
            assert not [key for key in await bucket.list("") if not key.startswith("probe/")]
        finally:
            await bucket.close()


class Racy(MemoryBucket):
    """Honours create-if-absent one after another, but lets racing writers through, as moto does."""

    async def create(self, key: str, data: bytes) -> None:
        if key in self.objects:
            raise AlreadyExists(key)
        await super().put(key, data)


class Late(MemoryBucket):
    """Does not list what was written last."""

    async def list(self, prefix: str, *, start_after: str = "") -> list[str]:
        return (await super().list(prefix, start_after=start_after))[:-1]


@pytest.mark.parametrize(("kind", "why"), [(Racy, "raced"), (Late, "list")])
async def test_half_safe_buckets_are_refused(kind: type[MemoryBucket], why: str) -> None:
    """A server that lets racing creators all win, or lists late, is refused with the reason."""
    with pytest.raises(UnsafeBucket, match=why):
        await check_bucket(kind())
