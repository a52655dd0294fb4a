"""What readers see of runs while these move between memory and the archive."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cluster.errors import StorageUnavailable
from cluster.storage.testing import MemoryBucket
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.testing import StoreFactory, wait_ended
from tests.virtual_time import in_virtual_time, loop_clock

WORKFLOW = "workflow: {name: one, steps: [{id: a, type: python_script}]}"


@dataclass
class SlowArchive(MemoryBucket):
    """Reads of archive objects wait until they are let through."""

    let: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, key: str) -> bytes:
        if "/done/" in key:
            self.asked.set()
            await self.let.wait()
        return await super().get(key)


async def test_a_run_that_is_archived_while_a_list_is_made_is_in_it() -> None:
    """A run leaves memory after the list has begun and before its turn: it is listed once all the same."""
    bucket = SlowArchive()
    async with StoreFactory(bucket=bucket).running() as store:
        await store.register({"workflow": WORKFLOW})
        runs = [(await store.submit({"workflow": "one"}))["id"] for _ in range(6)]
        for run_id in runs:
            await wait_ended(store, run_id)
        for run_id in runs[::2]:
            store.kernel.finished.pop(run_id)
        assert await store.archiver.archive() == 3
        listing = asyncio.create_task(store.list_runs({}))
        await bucket.asked.wait()
        for run_id in runs[::2]:
            store.kernel.finished[run_id] = 0.0
        assert await store.archiver.archive() == 3
        bucket.let.set()
        assert [row["id"] for row in (await listing)["runs"]] == sorted(runs, reverse=True)


@dataclass
class NoLog(MemoryBucket):
    """Takes everything, but for some time nothing of the log."""

    closed: bool = False

    async def create(self, key: str, data: bytes) -> None:
        if self.closed and "/wal/" in key:
            raise StorageUnavailable("503 (injected)")
        await super().create(key, data)


@in_virtual_time
async def test_an_archived_run_of_a_replaced_owner_is_not_called_missing() -> None:
    """An owner moved a run to the archive and could not record it; the next owner, which knows nothing of that object,
    removed it: the first one cannot say where the run is, and asks to come again."""
    bucket = NoLog()
    settings = StoreSettings(durable_timeout_s=0.1, read_timeout_s=0.1)
    async with StoreFactory(bucket=bucket, clock=loop_clock(), settings=settings).running() as store:
        await store.register({"workflow": WORKFLOW})
        run_id = (await store.submit({"workflow": "one"}))["id"]
        await wait_ended(store, run_id)
        bucket.closed = True
        assert await store.archiver.archive() == 1
        for key in [key for key in bucket.objects if "/done/" in key]:
            del bucket.objects[key]
        with pytest.raises(StorageUnavailable):
            await store.get(run_id)
        with pytest.raises(StorageUnavailable):
            await store.list_runs({})
