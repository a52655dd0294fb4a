"""`headrace verify` on any bucket: no false alarm after all that may happen to a log, and no damage passed over."""

from __future__ import annotations

import orjson
import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.errors import StorageUnavailable
from cluster.log import DurableLog, LogOptions, Recovered
from cluster.storage import Bucket
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.service import RunStore
from pipelines.run_store.testing import StoreFactory, until, wait_ended
from pipelines.verify.reading import verify_bucket
from tests.contract.conftest import KINDS
from tests.contract.test_run_store import PATIENT, WORKFLOW, patiently

BROKEN = Outcome(status="failed", error={"code": "step_error", "message": "broken"})


async def live(bucket: Bucket, shard: int) -> list[str]:
    """Two owners of a shard: runs that end, one that fails, is archived, resumed and ends, one that is cancelled, one
    whose owner is replaced in the middle; snapshots between, so that old segments are collected."""
    factory = StoreFactory(bucket=bucket, shard=shard, settings=PATIENT)
    executor = FakeExecutor()
    first = factory.make(executor)
    await patiently(first.start)
    await patiently(lambda: first.register({"workflow": WORKFLOW}))
    done = await submit(first, {"workflow": "two", "input": 1, "idempotency_key": f"done-{shard}"})
    await patiently(lambda: wait_ended(first, done))
    await patiently(first.archiver.snapshot)
    executor.answers["b"] = BROKEN
    failed = await submit(first, {"workflow": "two", "input": 2})
    await patiently(lambda: wait_ended(first, failed))
    await patiently(first.archiver.snapshot)
    executor.answers.clear()
    await patiently(lambda: first.resume(failed, {}))
    await patiently(lambda: wait_ended(first, failed))
    executor.hold("b")
    half = await submit(first, {"workflow": "two", "input": 3})
    cancelled = await submit(first, {"workflow": "two", "input": 4})
    await executor.wait_started(3, "b")
    await patiently(lambda: first.cancel(cancelled))
    second = factory.make()  # the first one is not told
    await patiently(second.start)
    await patiently(lambda: wait_ended(second, half))
    await patiently(second.archiver.snapshot)
    executor.release("b")
    await until(lambda: factory.fatal)
    await second.close()
    await first.close()
    return [done, failed, half, cancelled]


async def submit(store: RunStore, request: dict[str, object]) -> str:
    """A run's id."""
    request = {**request, "run_id": f"run-{store.kernel.shard}-{SystemIds().ulid()}"}
    return str((await patiently(lambda: store.submit(request)))["id"])


@pytest.mark.parametrize("bucket", KINDS[1:3], indirect=True)
async def test_no_false_alarm_and_no_damage_passed_over(bucket: Bucket) -> None:
    """Two shards with archived, resumed, cancelled and taken-over runs are clean; then a record that must not be, and
    an object that is gone, are each named with their place."""
    runs = await live(bucket, 0) + await live(bucket, 1)
    report = await patiently(lambda: verify_bucket(bucket, acknowledged=runs))
    assert report.violations == []
    assert report.counts["runs archived"] == 8
    assert report.counts["owners"] >= 2
    assert any("collected" in note for note in report.notes)

    log, found = await open_log(bucket)
    again = {"e": "AttemptStarted", "run_id": runs[-1], "step_id": "b", "attempt": 2, "fence": 1, "at": 1.0}
    await log.append([orjson.dumps(again)])
    await log.close()
    report = await patiently(lambda: verify_bucket(bucket, acknowledged=[*runs, "run-1-lost"]))
    named = {(v.invariant, v.log, v.position) for v in report.violations}
    assert named == {
        ("fences_grow", "runs/1", found.position), ("known", "runs/1", found.position), ("nothing_lost", "", None),
    }  # fmt: skip

    newest = (await patiently(lambda: bucket.list("runs/0/done/")))[-1]
    await patiently(lambda: bucket.delete(newest))
    report = await patiently(lambda: verify_bucket(bucket))
    assert [v.log for v in report.violations if v.invariant == "log" and newest in v.message] == ["runs/0"]


async def open_log(bucket: Bucket) -> tuple[DurableLog, Recovered]:
    """The second shard's log, owned by a program that writes what it likes."""
    for _ in range(20):
        try:
            return await DurableLog.open(
                bucket, "runs/1", clock=SystemClock(), ids=SystemIds(), options=LogOptions(collect=False)
            )
        except StorageUnavailable:
            continue
    pytest.fail("the log does not open")
