"""Logs that a worker writes side by side, and how a step's time is counted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cluster.errors import StorageUnavailable
from cluster.storage.testing import MemoryBucket
from pipelines.executor.bucket_blobs import BucketBlobs
from pipelines.executor.cpu_wait import cpu_wait_s
from pipelines.executor.port import Outcome
from pipelines.executor.wire import decode_outcome, encode_outcome


@dataclass
class Barrier(MemoryBucket):
    """No write is answered before `wanted` of them are under way; a key with `lost` in it cannot be written."""

    wanted: int = 1
    _came: int = 0
    _full: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, key: str, data: bytes) -> None:
        self._came += 1
        if self._came >= self.wanted:
            self._full.set()
        await self._full.wait()
        if "lost" in key:
            raise StorageUnavailable("away")
        await super().put(key, data)


def test_last_logs_of_a_shared_task_are_written_side_by_side() -> None:
    """A failed attempt's log is a write to the bucket, ten times what a short step takes: none waits for another, all
    are there at the end, and one that cannot be written fails nothing."""
    bucket = Barrier(wanted=3)
    blobs = BucketBlobs(bucket)
    with blobs.logs_together():
        for key in ("logs/a", "logs/lost", "logs/b"):
            blobs.put_last_log_blocking(key, key.encode())
    assert bucket.objects == {"logs/a": b"logs/a", "logs/b": b"logs/b"}
    blobs.put_last_log_blocking("logs/alone", b"x")
    assert bucket.objects["logs/alone"] == b"x"
    blobs.close()


def test_waiting_for_a_cpu_is_counted_apart() -> None:
    """It only grows, and an outcome carries it to who decides which steps are short."""
    before = cpu_wait_s()
    assert cpu_wait_s() >= before >= 0
    outcome = Outcome(status="success", output=1, duration_s=0.5, waited_s=0.25)
    assert decode_outcome(encode_outcome(outcome)) == outcome
