"""Writes the golden files of the format version that this release writes. Run once per format version, never again:
what stands in a released golden folder is what users have in their buckets.

    python -m tests.golden.make
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

from cluster.clock import ManualClock, SystemIds
from cluster.log import DurableLog
from cluster.storage import BlobStore
from cluster.storage.file_bucket import FileBucket
from cluster.storage.probe import check_bucket
from tests.simulation.store_history import StoreHistory

GOLDEN = Path(__file__).parent


async def make_log(folder: Path) -> None:
    """Three owners, a snapshot in the middle of a segment, compressed and plain segments, a blob."""
    shutil.rmtree(folder, ignore_errors=True)
    clock, source = ManualClock(), random.Random(1)
    ids = SystemIds(clock=clock, entropy=source.randbytes)
    bucket = FileBucket(folder)
    await check_bucket(bucket, ids=ids)
    log, _ = await DurableLog.open(bucket, "runs/0", clock=clock, ids=ids)
    await log.append([b"first", b"", "zweiter: \u00fc".encode()])
    await log.append([b"compressible " * 200])
    await log.close()
    clock.advance(60)
    log, _ = await DurableLog.open(bucket, "runs/0", clock=clock, ids=ids)
    ends = await asyncio.gather(*(log.append([f"group {number}".encode()]) for number in range(5)))
    await log.snapshot(b"the state after group 2", position=ends[2])
    await log.close()
    clock.advance(60)
    log, _ = await DurableLog.open(bucket, "runs/0", clock=clock, ids=ids)
    await log.append([b"last"])
    await log.close()
    await BlobStore(bucket).put(b"a blob", media_type="text/plain", name="blob.txt")
    await bucket.close()
    shutil.rmtree(folder / ".tmp", ignore_errors=True)
    shutil.rmtree(folder / "probe", ignore_errors=True)


def make_bucket(folder: Path) -> None:
    """A whole run store's bucket, from a simulated history: several owners, finished, failed and cancelled runs."""
    shutil.rmtree(folder, ignore_errors=True)
    history = StoreHistory(SEED).run()
    for key, data in {**history.objects, "headrace.json": b'{"product": "headrace", "format": 1}'}.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "acknowledged.txt").write_text("".join(f"{run}\n" for run in history.acknowledged.values()))


SEED = 17

if __name__ == "__main__":
    asyncio.run(make_log(GOLDEN / "log-v1"))
    make_bucket(GOLDEN / "bucket-v1")
