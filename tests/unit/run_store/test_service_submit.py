"""Submitting to a run store: idempotency keys, what is refused, outages, large inputs."""

from __future__ import annotations

import asyncio

import pytest

from cluster.clock import SystemIds
from cluster.errors import (
    Conflict,
    Forbidden,
    InvalidConfig,
    InvalidInput,
    NotFound,
    Overloaded,
    StorageUnavailable,
    TooLarge,
    Unprocessable,
)
from cluster.names import run_id as make_run_id
from cluster.storage.testing import MemoryBucket
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.testing import StoreFactory, wait_ended
from tests.unit.run_store.stores import TWO_STEPS, HeldBucket
from tests.virtual_time import in_virtual_time, loop_clock


async def test_the_same_key_gives_the_same_run() -> None:
    """Same key and body: the same run, also after a restart; another body: 422; another caller: another run."""
    factory = StoreFactory()
    request = {"workflow": "two", "input": 1, "idempotency_key": "k", "caller": "alice"}
    async with factory.running() as store:
        await store.register({"workflow": TWO_STEPS})
        first = await store.submit(request)
        assert (await store.submit(request))["id"] == first["id"]
        assert (await store.submit({**request, "caller": "bob"}))["id"] != first["id"]
        await wait_ended(store, first["id"])
        await store.archiver.snapshot()
    async with factory.running() as store:
        again = await store.submit(request)
        assert again["id"] == first["id"]
        assert not again["created"]
        with pytest.raises(Unprocessable):
            await store.submit({**request, "input": 2})


async def test_a_submit_sent_twice_while_its_input_is_stored_is_one_run() -> None:
    """A caller whose answer is late repeats it under the same run id; both are told of the same run."""
    bucket = HeldBucket()
    async with StoreFactory(bucket=bucket).running() as store:
        await store.register({"workflow": TWO_STEPS})
        run_id = make_run_id(0, SystemIds().ulid())
        request = {"workflow": "two", "input": {"text": "x" * 70_000}, "run_id": run_id}
        bucket.gate.clear()
        both = [asyncio.create_task(store.submit(request)) for _ in range(2)]
        await asyncio.sleep(0.01)
        bucket.gate.set()
        answers = await asyncio.gather(*both)
        assert [answer["id"] for answer in answers] == [run_id, run_id]
        assert sorted(answer["created"] for answer in answers) == [False, True]
        await wait_ended(store, run_id)


async def test_a_repeat_while_the_first_is_in_flight_is_a_conflict() -> None:
    """Until the first submit with a key is durable a second one is answered 409."""
    bucket = HeldBucket()
    async with StoreFactory(bucket=bucket).running() as store:
        await store.register({"workflow": TWO_STEPS})
        bucket.gate.clear()
        request = {"workflow": "two", "idempotency_key": "k"}
        first = asyncio.create_task(store.submit(request))
        await asyncio.sleep(0.01)
        with pytest.raises(Conflict):
            await store.submit(request)
        bucket.gate.set()
        run = await first
        assert (await store.submit(request))["id"] == run["id"]


async def test_a_refused_submit_leaves_nothing_behind() -> None:
    """An unknown workflow, bad ids and forbidden webhooks are refused, and their idempotency key stays free."""
    factory = StoreFactory(policy=OutboundPolicy(allow=("*.example.com",)))
    async with factory.running() as store:
        await store.register({"workflow": TWO_STEPS})
        with pytest.raises(NotFound, match="two"):
            await store.submit({"workflow": "nope", "idempotency_key": "k"})
        with pytest.raises(InvalidInput):
            await store.submit({"workflow": "two", "run_id": "run-7-x"})
        with pytest.raises(Forbidden):
            await store.submit({"workflow": "two", "webhook": {"url": "http://169.254.169.254/"}})
        assert (await store.list_runs({}))["runs"] == []
        assert (await store.submit({"workflow": "two", "idempotency_key": "k"}))["created"]


async def test_too_many_open_runs_and_too_large_inputs_are_refused() -> None:
    """Limits answer with an error that says what to do, before anything is recorded."""
    executor = FakeExecutor()
    executor.hold("a")
    settings = StoreSettings(max_queued_runs=2, max_input_bytes=1000)
    async with StoreFactory(settings=settings).running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        with pytest.raises(TooLarge):
            await store.submit({"workflow": "two", "input": "x" * 2000})
        for _ in range(2):
            await store.submit({"workflow": "two"})
        with pytest.raises(Overloaded) as caught:
            await store.submit({"workflow": "two"})
        assert caught.value.retry_after_s
        open_run = (await store.list_runs({}))["runs"][0]
        assert (await store.cancel(open_run["id"]))["state"] == "CANCELLED"


async def test_a_result_that_is_no_json_fails_its_step() -> None:
    """An executor that gives back something else fails that step alone; the store goes on."""
    executor = FakeExecutor(answers={"a": lambda attempt: {"x": object()}})
    factory = StoreFactory()
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two"})
        view = await wait_ended(store, run["id"])
        assert view["state"] == "FAILED"
        assert view["steps"][0]["error"]["code"] == "result_not_serialisable"
        await store.archiver.snapshot()
    assert factory.fatal == []


async def test_a_bad_definition_is_refused_with_its_problems() -> None:
    """A cycle or an unknown key never becomes a workflow."""
    async with StoreFactory().running() as store:
        with pytest.raises(InvalidConfig) as caught:
            await store.register({"workflow": TWO_STEPS.replace("{id: a,", "{id: a, depends_on: [b],")})
        assert caught.value.details["problems"]
        assert await store.workflows() == []


@in_virtual_time
async def test_an_outage_is_told_and_survived() -> None:
    """While the bucket is away submits get 503, results are kept, and all goes on when it is back."""
    bucket = HeldBucket()
    settings = StoreSettings(durable_timeout_s=0.1, read_timeout_s=0.1)
    executor = FakeExecutor()
    executor.hold("a")
    factory = StoreFactory(bucket=bucket, clock=loop_clock(), settings=settings)
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": 1})
        bucket.away = True
        executor.release("a")
        with pytest.raises(StorageUnavailable) as caught:
            await store.submit({"workflow": "two", "input": 2})
        assert caught.value.retry_after_s
        bucket.away = False
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"


@in_virtual_time
async def test_a_full_disk_is_told_and_survived() -> None:
    """With no space left small and large submits get 503, and when there is space all goes on, nothing lost."""
    bucket = HeldBucket()
    settings = StoreSettings(durable_timeout_s=0.1, spill_bytes=1000)
    factory = StoreFactory(bucket=bucket, clock=loop_clock(), settings=settings)
    executor = FakeExecutor()
    executor.hold("a")
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": 1})
        bucket.full = True
        for value in (2, {"text": "x" * 5000}):
            with pytest.raises(StorageUnavailable, match="no space left") as caught:
                await store.submit({"workflow": "two", "input": value})
            assert caught.value.retry_after_s
        executor.release("a")
        bucket.full = False
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"
        assert (await store.submit({"workflow": "two"}))["created"]
    assert factory.fatal == []


async def test_a_large_input_travels_by_reference() -> None:
    """An input over the threshold is a blob in the log, and a step sees the reference that stands for it."""
    executor = FakeExecutor()
    bucket = MemoryBucket()
    async with StoreFactory(bucket=bucket, settings=StoreSettings(spill_bytes=1000)).running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": {"text": "x" * 5000, "n": 1}})
        await wait_ended(store, run["id"])
    given = executor.started[0].input
    assert given["n"] == 1
    assert given["text"]["spilled"]
    assert given["text"]["$blob"] in "".join(key for key in bucket.objects if key.startswith("blobs/"))


@in_virtual_time
async def test_an_archive_that_cannot_be_written_is_told_once_and_made_good(caplog: pytest.LogCaptureFixture) -> None:
    """While the bucket takes no archive, finished runs stay in memory and the log says so once; later they go."""
    bucket = HeldBucket()
    factory = StoreFactory(bucket=bucket, clock=loop_clock(), settings=StoreSettings(archive_after_s=10))
    async with factory.running() as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": 1})
        await wait_ended(store, run["id"])
        bucket.away = True
        await asyncio.sleep(60)
        assert run["id"] in store.kernel.engine
        told = [record.getMessage() for record in caplog.records if record.name == "pipelines.run_store.housekeeping"]
        assert told == ["shard 0: finished runs stay in memory until the bucket takes them: 503 (a test)"]
        bucket.away = False
        await asyncio.sleep(60)
        assert run["id"] not in store.kernel.engine
        assert (await store.get(run["id"]))["state"] == "SUCCESS"
