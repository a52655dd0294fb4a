"""Collecting: what goes after its time with everything that belongs to it, what stays, and what is told of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import ManualClock, SystemIds
from cluster.errors import NotFound
from cluster.storage import BlobRef, BlobStore
from cluster.storage.testing import MemoryBucket
from pipelines.executor.errors import StepError
from pipelines.executor.log_keys import log_key
from pipelines.executor.port import Attempt
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.garbage import Marks, references_in
from pipelines.run_store.records import RunsCollected, decode_record, encode_fact
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.testing import StoreFactory, until, wait_ended
from pipelines.verify.reading import verify_bucket

DAY_S = 86_400.0
WORKFLOW = "workflow: {name: one, steps: [{id: a, type: python_script}]}"


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.bucket = MemoryBucket(now=self.clock.now)
        self.blobs = BlobStore(self.bucket, now=self.clock.now)
        self.executor = FakeExecutor(answers={"a": self.a})
        self.store: RunStore

    async def a(self, attempt: Attempt) -> Any:
        await self.bucket.put(log_key(attempt), b"printed\n")
        return attempt.input

    async def ran(self, value: Any) -> str:
        run_id = str((await self.store.submit({"workflow": "one", "input": value}))["id"])
        await wait_ended(self.store, run_id)
        return run_id

    async def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        """A collection from its beginning to its end."""
        await self.store.archiver.archive()
        await self.store.collect({"id": f"by-hand-{self.clock.now()}", "dry_run": dry_run})
        await until(lambda: (self.store.collector.view() or {})["state"] != "running", timeout_s=30)
        view = await self.store.collection()
        assert view is not None
        return view

    def found(self, prefix: str) -> list[str]:
        return sorted(key for key in self.bucket.objects if key.startswith(prefix))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    factory = StoreFactory(
        bucket=made.bucket,
        clock=made.clock,
        ids=SystemIds(clock=made.clock),
        settings=StoreSettings(retain_runs_s=30 * DAY_S, blob_grace_s=7 * DAY_S),
    )
    async with factory.running(made.executor) as store:
        made.store = store
        await store.register({"workflow": WORKFLOW, "files": {"a.py": b"def main(): return 1\n"}})
        yield made


async def test_a_run_that_stands_in_two_objects_is_counted_by_a_dry_run_too(bench: Bench) -> None:
    """One that was resumed was archived twice: both objects would go, and so would the run."""
    bench.executor.in_turn("a", [StepError("boom"), 1])
    run = await bench.ran(None)
    await bench.store.archiver.archive()
    await bench.store.resume(run, {})
    await wait_ended(bench.store, run)
    await bench.store.archiver.archive()
    bench.clock.advance(40 * DAY_S)
    assert (await bench.collect(dry_run=True))["counts"]["runs"] == 1
    assert (await bench.collect())["counts"]["runs"] == 1


async def test_old_runs_go_with_their_logs_and_blobs(bench: Bench) -> None:
    """What ended before its time goes: record, logs, blobs. A younger run, its blobs, and the scripts stay; verify
    calls nothing lost, neither by the log nor by acknowledged ids."""
    first, both, second = [await bench.blobs.put(data) for data in (b"first", b"both", b"second")]
    old = await bench.ran({"files": [first.to_json(), both.to_json()]})
    bench.clock.advance(20 * DAY_S)
    young = await bench.ran({"files": [second.to_json(), both.to_json()]})
    bench.clock.advance(15 * DAY_S)
    bundle = sorted(set(bench.found("blobs/")) - {first.key, both.key, second.key})

    counted = await bench.collect(dry_run=True)
    assert counted["counts"] == {"runs": 1, "logs": 1, "blobs": 1, "bytes": 5, "blobs_kept": 3}
    assert (await bench.store.get(old))["state"] == "SUCCESS"
    assert first.key in bench.bucket.objects

    done = await bench.collect()
    assert (done["state"], done["counts"]) == ("done", counted["counts"])
    with pytest.raises(NotFound):
        await bench.store.get(old)
    assert (await bench.store.get(young))["state"] == "SUCCESS"
    assert [run["id"] for run in (await bench.store.list_runs({}))["runs"]] == [young]
    assert set(bench.found("blobs/")) == {both.key, second.key, *bundle}
    assert [key.split("/")[-1].split(".")[0] for key in bench.found("logs/")] == [young.rsplit("-", 1)[-1]]
    assert bench.found("gc/claims/") == []
    for _ in range(2):
        report = await verify_bucket(bench.bucket, acknowledged=[old, young])
        assert report.violations == []
        await bench.store.archiver.snapshot()


async def test_a_run_that_was_resumed_is_not_old(bench: Bench) -> None:
    """A run that failed long ago and was resumed yesterday stays, though an old object of the archive holds it too."""
    bench.executor.answers["a"] = ValueError("not yet")
    run_id = await bench.ran({})
    await bench.store.archiver.archive()
    bench.clock.advance(40 * DAY_S)
    bench.executor.answers["a"] = bench.a
    await bench.store.resume(run_id, {})
    await wait_ended(bench.store, run_id)
    done = await bench.collect()
    assert done["counts"]["runs"] == 0
    assert (await bench.store.get(run_id))["state"] == "SUCCESS"
    assert len(bench.found("runs/0/done/")) == 1
    assert len(bench.found("logs/")) == 1


async def test_what_is_in_memory_is_in_use(bench: Bench) -> None:
    """Blobs of runs in flight stay however old they are, and so does what a webhook still has to tell."""
    file = await bench.blobs.put(b"needed")
    bench.executor.hold("a")
    await bench.store.submit({"workflow": "one", "input": {"file": file.to_json()}})
    await bench.executor.wait_started(1)
    bench.clock.advance(400 * DAY_S)
    assert (await bench.collect())["counts"]["blobs"] == 0
    assert file.key in bench.bucket.objects


async def test_a_young_blob_stays_and_an_old_one_is_pinned_by_its_use(bench: Bench) -> None:
    """A blob within its grace stays without a run; one that is stored or named again counts as new."""
    again, named, forgotten = [await bench.blobs.put(data) for data in (b"again", b"named", b"forgotten")]
    bench.clock.advance(8 * DAY_S)
    young = await bench.blobs.put(b"young")
    assert await bench.blobs.put(b"again") == again
    assert await bench.blobs.keep(named)
    await bench.collect()
    kept = bench.found("blobs/")
    assert {again.key, named.key, young.key} < set(kept)
    assert forgotten.key not in kept
    assert not await bench.blobs.keep(forgotten)
    bench.clock.advance(9 * DAY_S)
    await bench.collect()
    assert not {again.key, named.key, young.key} & set(bench.found("blobs/"))
    assert bench.found("gc/pins/") == []


async def test_a_claimed_blob_is_waited_for_and_stored_again(bench: Bench) -> None:
    """Whoever stores a blob that is just being removed waits until it is gone, and stores it anew."""
    ref = await bench.blobs.put(b"contested")
    bench.clock.advance(8 * DAY_S)
    await bench.bucket.put("gc/claims/1-x", orjson.dumps([ref.sha256]))
    storing = asyncio.create_task(bench.blobs.put(b"contested"))
    await until(lambda: bench.found("gc/pins/"))
    await bench.bucket.delete(ref.key)
    assert not storing.done()
    await bench.bucket.delete("gc/claims/1-x")
    assert await asyncio.wait_for(storing, 60) == ref
    assert bench.bucket.objects[ref.key] == b"contested"


async def test_a_shard_that_does_not_answer_keeps_all_blobs(bench: Bench) -> None:
    """Where the bucket holds the runs of a shard that is not served, no blob is removed, and the reason is told."""
    ref = await bench.blobs.put(b"whose")
    await bench.bucket.put("runs/3/wal/00000000000000000001", b"another shard")
    bench.clock.advance(8 * DAY_S)
    done = await bench.collect()
    assert done["state"] == "failed"
    assert "shard 3" in done["error"]
    assert ref.key in bench.bucket.objects


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8), st.booleans())
def test_references_are_found_wherever_they_stand(contents: list[bytes], as_text: bool) -> None:
    """Every reference in a record is found, also in JSON that stands as text inside it, and packs into a set."""
    refs = [BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for data in contents]
    value: Any = {"steps": [{"output": ref.to_json()} for ref in refs], "no": {"$blob": "mine"}}
    record = orjson.dumps({"history": orjson.dumps(value).decode()} if as_text else value)
    assert set(references_in(record)) == {ref.sha256 for ref in refs}
    marks = Marks()
    for sha256 in references_in(record):
        marks.add(sha256)
    again = Marks(marks.pack())
    assert all(ref.sha256 in again for ref in refs)
    assert len(again) == len(set(contents))


def test_the_fact_is_read_back() -> None:
    """What a collection logs is what the next owner and verify read."""
    fact = RunsCollected(keys=("runs/0/done/1/a",), run_ids=("run-0-x",), before=1.5)
    assert decode_record(encode_fact(fact)) == fact
