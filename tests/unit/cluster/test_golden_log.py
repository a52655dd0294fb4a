"""What an earlier release wrote must stay readable: the golden files are never written again for their version."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.clock import SystemClock, SystemIds
from cluster.log import DurableLog, LogReader
from cluster.storage import BlobRef, BlobStore
from cluster.storage.file_bucket import FileBucket
from cluster.storage.probe import read_format
from pipelines.verify.reading import verify_bucket

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDS = [b"first", b"", "zweiter: ü".encode(), b"compressible " * 200, *(b"group %d" % n for n in range(5)), b"last"]


async def test_format_1_is_read_whole() -> None:
    """Every record of the golden log comes back from its beginning, with its owners."""
    bucket = FileBucket(GOLDEN / "log-v1")
    assert await read_format(bucket) == 1
    history = await LogReader(bucket, "runs/0").read()
    assert history.records() == RECORDS
    assert [segment.epoch for segment in history.segments if segment.kind == "epoch"] == [1, 2, 3]
    blob = BlobRef.parse({"$blob": "5570a3cf02207f1d352d2cfea385be4bc0b2b9414f606baa6f55db60b232f221", "size": 6})
    assert blob is not None
    assert await BlobStore(bucket).get(blob) == b"a blob"
    await bucket.close()


async def test_format_1_can_be_gone_on_with(tmp_path: Path) -> None:
    """A new owner recovers from the golden snapshot and the records after it, and appends."""
    shutil.copytree(GOLDEN / "log-v1", tmp_path / "bucket")
    bucket = FileBucket(tmp_path / "bucket")
    log, found = await DurableLog.open(bucket, "runs/0", clock=SystemClock(), ids=SystemIds())
    assert (found.snapshot, found.records) == (b"the state after group 2", RECORDS[-3:])
    assert (found.epoch, found.position) == (4, len(RECORDS))
    await log.append([b"more"])
    await log.close()
    history = await LogReader(bucket, "runs/0").read()
    assert history.records() == [*RECORDS, b"more"]
    await bucket.close()


async def test_a_whole_bucket_of_format_1_verifies() -> None:
    """A run store's golden bucket holds every run that was acknowledged, and keeps all invariants."""
    bucket = FileBucket(GOLDEN / "bucket-v1")
    acknowledged = (GOLDEN / "bucket-v1" / "acknowledged.txt").read_text().split()
    report = await verify_bucket(bucket, acknowledged=acknowledged)
    assert report.violations == []
    assert report.counts["runs"] >= len(acknowledged) > 3
    await bucket.close()
