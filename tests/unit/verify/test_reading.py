"""Verification of whole buckets: what is missing, damaged or lost in one is found and named."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from cluster.clock import ManualClock, SystemIds
from cluster.config.models import StorageConfig
from cluster.errors import FormatVersionUnsupported, NotFound
from cluster.log import DurableLog
from cluster.storage.testing import MemoryBucket
from pipelines.run_store.testing import StoreFactory
from pipelines.verify.reading import verify_bucket, verify_url

GOLDEN = Path(__file__).parents[2] / "golden" / "bucket-v1"


@pytest.fixture
def bucket() -> MemoryBucket:
    """A copy of a run store's bucket of format 1."""
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    return MemoryBucket({str(path.relative_to(GOLDEN)): path.read_bytes() for path in files})


def first(bucket: MemoryBucket, part: str) -> str:
    return next(key for key in sorted(bucket.objects) if part in key)


async def test_a_good_bucket_is_good_and_stays_untouched(bucket: MemoryBucket) -> None:
    """Nothing is broken, the counts are there, and not one object was written or removed."""
    before = dict(bucket.objects)
    report = await verify_bucket(bucket)
    assert report.ok
    assert report.counts["steps committed"] > 0
    assert report.counts["owners"] > 1
    assert bucket.objects == before


@pytest.mark.parametrize("part", ["/wal/00000000000000000009", "/done/"])
async def test_a_missing_object_is_named(bucket: MemoryBucket, part: str) -> None:
    """A log segment or an archive object that is gone is a violation with its key."""
    for snapshot in [key for key in bucket.objects if "/snap/" in key]:
        del bucket.objects[snapshot]  # with a snapshot after it, the segment may have been collected
    key = first(bucket, part)
    del bucket.objects[key]
    report = await verify_bucket(bucket)
    assert [v.invariant for v in report.violations] == ["log"]
    assert key in report.violations[0].message


@pytest.mark.parametrize("part", ["/wal/00000000000000000009", "/done/"])
async def test_a_damaged_object_is_named(bucket: MemoryBucket, part: str) -> None:
    """One changed byte is a violation with the object's key."""
    key = first(bucket, part)
    data = bytearray(bucket.objects[key])
    data[len(data) // 2] ^= 1
    bucket.objects[key] = bytes(data)
    report = await verify_bucket(bucket)
    assert report.violations[0].invariant == "log"
    assert key in report.violations[0].message


async def test_an_acknowledged_run_that_is_nowhere_is_named(bucket: MemoryBucket) -> None:
    """Ids that callers were given are looked for in the log and in the archive."""
    known = (GOLDEN / "acknowledged.txt").read_text().split()
    report = await verify_bucket(bucket, acknowledged=[*known, "run-0-lost"])
    assert [(v.invariant, v.run_id) for v in report.violations] == [("nothing_lost", "run-0-lost")]


async def test_a_record_that_breaks_an_invariant_is_found_in_a_real_log(bucket: MemoryBucket) -> None:
    """A start after the end of a run, appended to a real log, is reported with its position."""
    run_id = (GOLDEN / "acknowledged.txt").read_text().split()[-1]
    log, found = await DurableLog.open(bucket, "runs/0", clock=ManualClock(), ids=SystemIds())
    event = {"e": "RunSubmitted", "run_id": run_id, "workflow": "chain", "digest": "no", "input": None, "at": 1.0}
    await log.append([orjson.dumps(event)])
    await log.close()
    report = await verify_bucket(bucket)
    assert {v.invariant for v in report.violations} == {"one_result", "known"}
    assert {v.position for v in report.violations} == {found.position}


async def test_an_empty_bucket_is_not_called_good(tmp_path: Path) -> None:
    """A wrong URL is an error, not a clean report."""
    with pytest.raises(NotFound, match="is the URL right"):
        await verify_url(StorageConfig(url=f"file://{tmp_path}"))


async def test_another_format_is_refused(bucket: MemoryBucket) -> None:
    """A bucket of a later format is not judged by this release's rules."""
    bucket.objects["headrace.json"] = b'{"product": "headrace", "format": 2}'
    with pytest.raises(FormatVersionUnsupported):
        await verify_bucket(bucket)


async def test_a_key_that_gave_runs_in_two_shards_is_named() -> None:
    """Each shard's log is good by itself; together they break the promise of idempotency keys."""
    bucket = MemoryBucket()
    runs = []
    for shard in (0, 1):
        async with StoreFactory(bucket=bucket, shard=shard).running() as store:
            await store.register({"workflow": "workflow: {name: one, steps: [{id: a, type: python_script}]}"})
            runs.append((await store.submit({"workflow": "one", "idempotency_key": "k"}))["id"])
            await store.submit({"workflow": "one", "idempotency_key": f"other-{shard}"})
    report = await verify_bucket(bucket, acknowledged=runs)
    assert [(v.invariant, v.log, v.run_id) for v in report.violations] == [("one_key_one_run", "runs/1", runs[1])]
    assert runs[0] in report.violations[0].message
