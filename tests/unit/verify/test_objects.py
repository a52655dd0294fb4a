"""`headrace verify` on single objects that are damaged or gone: each is named, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cluster.storage import BlobRef
from cluster.storage.testing import MemoryBucket
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.layouts import LAYOUTS
from pipelines.run_store.testing import StoreFactory, until, wait_ended
from pipelines.verify.reading import verify_bucket
from pipelines.verify.report import Report

WORKFLOW = "workflow: {name: w, steps: [{id: a, type: python_script}]}"
FILES = {"a.py": b"def main(input): return input\n"}


@dataclass
class Lived:
    """A shard's bucket after some runs, with two snapshots."""

    bucket: MemoryBucket
    archived: str
    """Its output is a blob."""
    waiting: str
    """It has just got a blob from its first step, and is in memory."""
    outputs: list[BlobRef]

    async def verify(self, *more: str) -> Report:
        return await verify_bucket(self.bucket, acknowledged=[self.archived, self.waiting, *more])

    def blob(self, ref: BlobRef) -> str:
        return f"blobs/{ref.sha256[:2]}/{ref.sha256}"


@pytest.fixture
async def lived() -> Lived:
    bucket = MemoryBucket()
    outputs: list[BlobRef] = []
    executor = FakeExecutor()
    async with StoreFactory(bucket=bucket).running(executor) as store:

        async def large(attempt: Attempt) -> Outcome:
            outputs.append(await store.kernel.blobs.put(b'"%d"' % len(outputs), media_type="application/json"))
            return Outcome(status="success", output=outputs[-1].to_json())

        executor.answers["a"] = large
        await store.register({"workflow": WORKFLOW, "files": FILES})
        await store.register(
            {
                "workflow": WORKFLOW.replace("name: w", "name: ask").replace(
                    "}]", "}, {id: b, type: approval, depends_on: [a]}]"
                )
            }
        )
        archived = (await store.submit({"workflow": "w", "input": {"text": "x" * 200_000}}))["id"]
        await wait_ended(store, archived)
        await store.archiver.snapshot()
        waiting = (await store.submit({"workflow": "ask"}))["id"]
        await until(lambda: store.kernel.engine.view(waiting)["steps"][0]["state"] == "SUCCESS")
        await store.archiver.snapshot()
    return Lived(bucket, archived, waiting, outputs)


async def test_whole_buckets_are_clean(lived: Lived) -> None:
    """Nothing is found where nothing is wrong."""
    report = await lived.verify()
    assert (report.violations, [note for note in report.notes if "missing" in note]) == ([], [])


async def test_blobs_of_runs_and_definitions_that_are_gone_are_named(lived: Lived) -> None:
    """With the run or the workflow that names them; what only an input names is worth a note."""
    kept = dict(lived.bucket.objects)
    for ref, run_id in zip(lived.outputs, (lived.archived, lived.waiting), strict=True):
        del lived.bucket.objects[lived.blob(ref)]
        (found,) = (await lived.verify()).violations
        assert (found.invariant, found.run_id) == ("log", run_id)
        assert lived.blob(ref) in found.message
        lived.bucket.objects.update(kept)
    others = {key for key in kept if key.startswith("blobs/")} - {lived.blob(ref) for ref in lived.outputs}
    assert len(others) == 2
    told = []
    for key in others:
        del lived.bucket.objects[key]
        report = await lived.verify()
        told.append((len(report.violations), sum(key in note for note in report.notes)))
        lived.bucket.objects.update(kept)
    assert sorted(told) == [(0, 1), (1, 0)]


async def test_a_damaged_newest_snapshot_is_named(lived: Lived) -> None:
    """The history may be read from before it, but a recovery would begin with it; removing it is a cure."""
    first, newest = sorted(key for key in lived.bucket.objects if "/snap/" in key)
    lived.bucket.objects[newest] = lived.bucket.objects[newest][:-1] + b"?"
    (found,) = (await lived.verify()).violations
    assert newest in found.message
    assert "smaller number" in found.message
    lived.bucket.objects[newest] = lived.bucket.objects[first]
    (found,) = (await lived.verify()).violations
    assert "does not belong here" in found.message
    del lived.bucket.objects[newest]
    assert (await lived.verify()).violations == []
    async with StoreFactory(bucket=lived.bucket).running() as store:
        assert (await store.get(lived.waiting))["state"] == "RUNNING"


async def test_a_damaged_layout_is_named(lived: Lived) -> None:
    """Without it the next start would not know where keys belonged."""
    lived.bucket.objects[f"{LAYOUTS}000001"] = b"?"
    (found,) = (await lived.verify()).violations
    assert f"{LAYOUTS}000001" in found.message


async def test_runs_of_a_log_that_cannot_be_read_are_not_called_lost(lived: Lived) -> None:
    """Only those of other shards are."""
    key = max(key for key in lived.bucket.objects if "/wal/" in key)
    lived.bucket.objects[key] = b"?"
    report = await lived.verify("run-1-01jd3zqv8k9d6w7c5x2m4t8r1f")
    assert [found.invariant for found in report.violations] == ["log", "nothing_lost"]
    assert any("2 acknowledged runs" in note for note in report.notes)
