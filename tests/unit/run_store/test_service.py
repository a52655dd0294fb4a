"""The run store over a bucket in memory: acknowledgement, durability, recovery, fencing, queries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.errors import (
    Conflict,
    Fenced,
    InvalidInput,
    NotFound,
    StorageUnavailable,
    Unavailable,
)
from cluster.storage.testing import MemoryBucket
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.testing import StoreFactory, until, wait_ended
from tests.unit.run_store.stores import APPROVAL, TWO_STEPS, HeldBucket
from tests.virtual_time import in_virtual_time, loop_clock


async def test_a_run_goes_through_its_steps() -> None:
    """A submit is answered with an id, its steps run in order, and its output is shown."""
    executor = FakeExecutor()
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": {"x": 1}})
        assert run["created"]
        view = await wait_ended(store, run["id"])
        assert view["state"] == "SUCCESS"
        assert view["output"] == {"b": {"x": 1}}
        assert [attempt.step_id for attempt in executor.started] == ["a", "b"]


@in_virtual_time
async def test_a_submit_is_acknowledged_only_when_it_is_durable() -> None:
    """While the bucket has not answered, the caller has no answer, nothing is shown, and no step starts."""
    bucket = HeldBucket()
    executor = FakeExecutor()
    factory = StoreFactory(bucket=bucket, clock=loop_clock(), settings=StoreSettings(read_timeout_s=0.05))
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        bucket.gate.clear()
        submit = asyncio.create_task(store.submit({"workflow": "two"}))
        await asyncio.sleep(0.05)
        assert not submit.done()
        assert executor.started == []
        with pytest.raises(StorageUnavailable):
            await store.list_runs({})
        bucket.gate.set()
        run = await submit
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"


async def test_unfinished_runs_go_on_in_the_next_process() -> None:
    """A second process over the same bucket finishes what the first began, from the last committed step."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.hold("b")
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": 7})
        await executor.wait_started(1, "b")
    second = FakeExecutor()
    async with factory.running(second) as store:
        view = await wait_ended(store, run["id"])
        assert view["output"] == {"b": 7}
        assert [attempt.step_id for attempt in second.started] == ["b"]
        assert second.started[0].fence > executor.started[-1].fence
        assert second.started[0].idempotency_key == executor.started[-1].idempotency_key


async def test_events_keep_their_numbers_over_a_restart() -> None:
    """A follower that reconnects with the last id it saw misses nothing and sees nothing twice."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.hold("b")
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two"})
        await executor.wait_started(1, "b")
        before = await store.events(run["id"], 0, 0)
        await store.archiver.snapshot()
    async with factory.running() as store:
        await wait_ended(store, run["id"])
        again = await store.events(run["id"], 0, 0)
        rest = await store.events(run["id"], before["events"][-1]["id"], 0)
    assert again["events"][: len(before["events"])] == before["events"]
    assert again["events"] == before["events"] + rest["events"]
    assert [event["id"] for event in again["events"]] == list(range(1, len(again["events"]) + 1))
    assert again["events"][-1]["event"] == "run.succeeded"


async def test_a_follower_is_woken_by_the_next_event() -> None:
    """A long poll answers as soon as something is committed, and empty when nothing is within its time."""
    executor = FakeExecutor()
    executor.hold("a")
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two"})
        await executor.wait_started(1)
        seen = (await store.events(run["id"], 0, 0))["events"][-1]["id"]
        assert (await store.events(run["id"], seen, 0.02)) == {"events": [], "done": False}
        poll = asyncio.create_task(store.events(run["id"], seen, 60))
        await asyncio.sleep(0)
        executor.release("a")
        assert (await poll)["events"][0]["event"] == "step.succeeded"


async def test_a_zombie_is_fenced_and_stops() -> None:
    """When a second owner has taken over, the first commits nothing more and ends itself."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.hold("a")
    zombie = factory.make(executor)
    await zombie.start()
    await zombie.register({"workflow": TWO_STEPS})
    run = await zombie.submit({"workflow": "two"})
    async with factory.running() as store:
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"
        executor.release("a")
        with pytest.raises((Unavailable, Fenced)):
            await zombie.submit({"workflow": "two"})
        assert isinstance(factory.fatal[0], Fenced)
        with pytest.raises(Unavailable):
            await zombie.get(run["id"])
        assert len((await store.list_runs({}))["runs"]) == 1
    await zombie.close()


async def test_an_idle_zombie_notices_its_successor() -> None:
    """An owner that has nothing to write still finds out that it was replaced."""
    factory = StoreFactory(settings=StoreSettings(watch_owner_s=0.01))
    zombie = factory.make()
    await zombie.start()
    async with factory.running():
        await until(lambda: factory.fatal)
    assert isinstance(factory.fatal[0], Fenced)
    await zombie.close()


# ---- the three crash windows of Ray's documentation on asynchronous inference ----


async def test_window_1_crash_after_the_work_before_the_commit() -> None:
    """The work was done but its result was not durable: it is done again, under the same idempotency key."""
    bucket = HeldBucket()
    factory = StoreFactory(bucket=bucket)
    executor = FakeExecutor()
    executor.hold("a")
    store = factory.make(executor)
    await store.start()
    await store.register({"workflow": TWO_STEPS})
    run = await store.submit({"workflow": "two", "input": 1})
    await executor.wait_started(1, "a")
    bucket.gate.clear()
    executor.release("a")
    await until(lambda: executor.finished)
    dead = HeldBucket(objects=dict(bucket.objects))
    second = FakeExecutor()
    async with StoreFactory(bucket=dead).running(second) as successor:
        view = await wait_ended(successor, run["id"])
    assert view["state"] == "SUCCESS"
    assert [attempt.step_id for attempt in second.started] == ["a", "b"]
    assert second.started[0].idempotency_key == executor.started[0].idempotency_key
    assert second.started[0].fence > executor.started[0].fence
    bucket.gate.set()
    await store.close()


async def test_window_2_crash_after_the_commit_before_the_acknowledgement() -> None:
    """The submit was durable but its answer was never sent: the same submit again finds the same run."""
    bucket = HeldBucket()
    factory = StoreFactory(bucket=bucket)
    first = factory.make()
    await first.start()
    await first.register({"workflow": TWO_STEPS})
    request = {"workflow": "two", "input": 1, "idempotency_key": "k", "run_id": f"run-0-{factory.ids.ulid()}"}
    submit = asyncio.create_task(first.submit(request))
    before = set(bucket.objects)
    await until(lambda: set(bucket.objects) != before)
    submit.cancel()
    await first.close()
    async with factory.running() as store:
        again = await store.submit(request)
        other_id = await store.submit({**request, "run_id": f"run-0-{factory.ids.ulid()}"})
        assert again["id"] == other_id["id"] == request["run_id"]
        assert not again["created"]
        assert len((await store.list_runs({}))["runs"]) == 1


async def test_window_3_the_acknowledgement_was_lost() -> None:
    """The step's result was committed and the process died before anyone heard: the step is not run again."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.hold("b")
    store = factory.make(executor)
    await store.start()
    await store.register({"workflow": TWO_STEPS})
    run = await store.submit({"workflow": "two", "input": 1})
    await executor.wait_started(1, "b")
    copy = MemoryBucket(objects=dict(factory.bucket.objects))  # type: ignore[attr-defined]
    await store.close()
    second = FakeExecutor()
    async with StoreFactory(bucket=copy).running(second) as successor:
        await wait_ended(successor, run["id"])
    assert [attempt.step_id for attempt in second.started] == ["b"]


# ---- what is refused ----


# ---- trouble with the bucket ----


# ---- queries ----


async def test_lists_are_filtered_and_paged_over_memory_and_archive() -> None:
    """Pages hold every run once, newest first, wherever it is kept; filters apply to all of them."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.answers["a"] = lambda attempt: (
        Outcome(status="failed", error={"code": "step_error", "message": "odd"}) if attempt.input % 2 else attempt.input
    )
    async with factory.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        made = [await store.submit({"workflow": "two", "input": n}) for n in range(10)]
        for run in made[:6]:
            await wait_ended(store, run["id"])
        await store.archiver.archive()
        for run in made[6:]:
            await wait_ended(store, run["id"])
        ids = [run["id"] for run in reversed(made)]
        seen: list[str] = []
        cursor = None
        while True:
            page = await store.list_runs({"limit": 3, "cursor": cursor})
            seen += [run["id"] for run in page["runs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == sorted(ids, reverse=True)
        failed = await store.list_runs({"state": ["FAILED"]})
        assert {run["id"] for run in failed["runs"]} == {run["id"] for run in made[1::2]}
        assert (await store.list_runs({"workflow": "other"}))["runs"] == []
        assert (await store.list_runs({"since": 4_000_000_000}))["runs"] == []
        with pytest.raises(InvalidInput):
            await store.list_runs({"cursor": "nonsense"})


async def test_finished_runs_leave_memory_and_stay_readable() -> None:
    """After archiving, memory holds no finished run; its view and its events come from the bucket."""
    factory = StoreFactory()
    async with factory.running() as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": 3})
        live = await wait_ended(store, run["id"])
        events = await store.events(run["id"], 0, 0)
        assert await store.archiver.archive() == 1
        assert store.status()["runs"] == 0
        assert store.kernel.memory.entries == {}
        assert await store.get(run["id"]) == live
        assert await store.events(run["id"], 0, 0) == events
        assert await store.cancel(run["id"]) == live
        with pytest.raises(NotFound):
            await store.get(f"run-0-{factory.ids.ulid()}")
    async with factory.running() as store:
        assert await store.get(run["id"]) == live


# ---- cancel, signal, resume ----


async def test_nothing_starts_after_an_acknowledged_cancel() -> None:
    """A cancel stops the running attempt, and no further step starts."""
    executor = FakeExecutor()
    executor.hold("a")
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two"})
        await executor.wait_started(1)
        view = await store.cancel(run["id"], "enough")
        assert (view["state"], view["reason"]) == ("CANCELLED", "enough")
        executor.release("a")
        await asyncio.sleep(0.05)
        assert [attempt.step_id for attempt in executor.started] == ["a"]
        assert [attempt.step_id for attempt in executor.cancelled] == ["a"]


async def test_an_approval_waits_for_its_signal() -> None:
    """An approval holds no worker; the signal's payload is its output."""
    executor = FakeExecutor()
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": APPROVAL})
        run = await store.submit({"workflow": "ask"})
        with pytest.raises(InvalidInput):
            await store.signal(run["id"], "ask", "yes")
        with pytest.raises(Conflict):
            await store.signal(run["id"], "b", {})
        await store.signal(run["id"], "ask", {"approved": True, "by": "me"})
        view = await wait_ended(store, run["id"])
        assert view["steps"][0]["output"] == {"approved": True, "by": "me"}
        with pytest.raises(Conflict):
            await store.signal(run["id"], "ask", {})


async def failed_run(store: Any, executor: FakeExecutor) -> str:
    executor.answers["b"] = Outcome(status="failed", error={"code": "step_error", "message": "broken"})
    await store.register({"workflow": TWO_STEPS})
    run = await store.submit({"workflow": "two", "input": 5})
    assert (await wait_ended(store, run["id"]))["state"] == "FAILED"
    return str(run["id"])


@pytest.mark.parametrize("archived", [False, True])
async def test_a_failed_run_resumes_from_its_committed_steps(archived: bool) -> None:
    """Resume runs only what had not committed, also for a run that has left memory, and over a restart."""
    factory = StoreFactory()
    executor = FakeExecutor()
    async with factory.running(executor) as store:
        run_id = await failed_run(store, executor)
        if archived:
            await store.archiver.archive()
    second = FakeExecutor()
    async with factory.running(second) as store:
        answer = await store.resume(run_id, {})
        assert answer["confirmed"]
        view = await wait_ended(store, run_id)
        assert view["state"] == "SUCCESS"
        assert [attempt.step_id for attempt in second.started] == ["b"]
        await store.archiver.archive()
        assert (await store.get(run_id))["state"] == "SUCCESS"
        assert [run["state"] for run in (await store.list_runs({}))["runs"]] == ["SUCCESS"]
        with pytest.raises(Conflict):
            await store.resume(run_id, {})


async def test_fix_and_resume_first_lists_what_stays_valid() -> None:
    """With an edited workflow the first answer is the plan and changes nothing; confirmed, the run goes on by it."""
    executor = FakeExecutor()
    async with StoreFactory().running(executor) as store:
        run_id = await failed_run(store, executor)
        before = await store.workflows()
        edited = TWO_STEPS.replace("id: b, type: python_script", "id: b, type: python_script, function: fixed")
        answer = await store.resume(run_id, {"workflow": edited})
        assert not answer["confirmed"]
        assert answer["plan"]["kept"] == ["a"]
        assert list(answer["plan"]["again"]) == ["b"]
        assert await store.workflows() == before
        assert (await store.get(run_id))["state"] == "FAILED"
        executor.answers["b"] = "fixed"
        executor.started.clear()
        assert (await store.resume(run_id, {"workflow": edited, "confirm": True}))["confirmed"]
        view = await wait_ended(store, run_id)
        assert view["output"] == {"b": "fixed"}
        assert [(attempt.step_id, attempt.function) for attempt in executor.started] == [("b", "fixed")]
