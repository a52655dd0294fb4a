"""Resuming what has left memory: a run goes on with the nested runs that it had, wherever they are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.errors import Conflict, NotFound
from cluster.storage.testing import MemoryBucket
from pipelines.executor.port import Attempt
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.service import RunStore
from pipelines.run_store.testing import StoreFactory, until, wait_ended

CHILD = """
workflow:
  name: child
  steps:
    - {id: first, type: python_script}
    - {id: second, type: python_script, depends_on: [first], input: "{{input.i}}"}
  output: "{{steps.second.output}}"
"""

PARENT = """
workflow:
  name: parent
  steps:
    - id: sub
      type: workflow
      workflow: child
      foreach: {items: [0, 1, 2, 3, 4, 5], max_parallel: %d, on_failure: {threshold: %s}}
      input: {i: "{{item}}"}
"""


@dataclass
class Odd(FakeExecutor):
    """Odd items fail in their second step until `mended`."""

    mended: bool = False

    def __post_init__(self) -> None:
        self.answers["second"] = self._second

    def _second(self, attempt: Attempt) -> Any:
        if attempt.input % 2 and not self.mended:
            raise RuntimeError("odd")
        return attempt.input


class SlowBlobs(MemoryBucket):
    """Blobs are written when `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = False

    async def create(self, key: str, data: bytes) -> None:
        if key.startswith("blobs/"):
            self.waiting = not self.gate.is_set()
            await self.gate.wait()
        await super().create(key, data)


async def failed(store: RunStore, width: int, threshold: str) -> str:
    await store.register({"workflow": CHILD})
    await store.register({"workflow": PARENT % (width, threshold)})
    run = (await store.submit({"workflow": "parent"}))["id"]
    assert (await wait_ended(store, run))["state"] == "FAILED"
    return str(run)


@pytest.mark.parametrize(("width", "threshold"), [(6, "0.4"), (1, "0.4"), (2, "0")])
async def test_items_go_on_with_their_nested_runs_from_the_archive(width: int, threshold: str) -> None:
    """All are archived before the resume, and the archiver comes by again while later items still wait: no committed
    step of a nested run is run again."""
    factory, executor = StoreFactory(), Odd()
    async with factory.running(executor) as store:
        run = await failed(store, width, threshold)
        await store.archiver.archive()
        assert len(store.kernel.engine) == 0
    executor = Odd(mended=True)
    async with factory.running(executor) as store:
        before = {row["id"] for row in (await store.list_runs({"workflow": "child"}))["runs"]}
        committed = {
            (child, step["id"])
            for child in before
            for step in (await store.get(child))["steps"]
            if step["state"] == "SUCCESS"
        }
        assert committed
        executor.hold("second")
        await store.resume(run, {})
        await executor.wait_started(1, "second")
        await store.archiver.archive()
        executor.release("second")
        view = await wait_ended(store, run)
        assert view["output"] == {"sub": [0, 1, 2, 3, 4, 5]}
        after = {row["id"] for row in (await store.list_runs({"workflow": "child"}))["runs"]}
        assert len(after) == 6
        assert before <= after
        assert not committed & {(attempt.run_id, attempt.step_id) for attempt in executor.started}
        await store.archiver.archive()
        assert len(store.kernel.engine) == 0


async def test_a_run_in_memory_goes_on_with_nested_runs_that_were_archived() -> None:
    """They ended long before it did."""
    executor = Odd()
    async with StoreFactory().running(executor) as store:
        run = await failed(store, 6, "0.4")
        store.kernel.finished.pop(run)
        await store.archiver.archive()
        assert store.kernel.engine.run_ids() == [run]
        executor.mended = True
        await store.resume(run, {})
        assert (await wait_ended(store, run))["state"] == "SUCCESS"
        assert [attempt.step_id for attempt in executor.started].count("first") == 6


async def test_the_archiver_takes_nothing_from_under_a_resume() -> None:
    """It comes by while the edited definition's scripts are still on their way to the bucket."""
    bucket, executor = SlowBlobs(), Odd()
    async with StoreFactory(bucket=bucket).running(executor) as store:
        run = await failed(store, 6, "0.4")
        executor.mended = True
        request = {"workflow": PARENT % (6, "0.5"), "files": {"notes.txt": b"new"}, "confirm": True}
        bucket.gate.clear()
        resumed = asyncio.create_task(store.resume(run, request))
        await until(lambda: bucket.waiting)
        await store.archiver.archive()
        bucket.gate.set()
        await resumed
        assert (await wait_ended(store, run))["output"] == {"sub": [0, 1, 2, 3, 4, 5]}
        assert not store.kernel.pinned


async def test_what_cannot_be_resumed_is_said_from_the_archive_too() -> None:
    """A run that succeeded, or that nobody knows."""
    executor = Odd(mended=True)
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": CHILD})
        run = (await store.submit({"workflow": "child", "input": {"i": 1}}))["id"]
        await wait_ended(store, run)
        await store.archiver.archive()
        with pytest.raises(Conflict, match="SUCCESS"):
            await store.resume(run, {})
        with pytest.raises(NotFound):
            await store.resume(run[:-1] + ("1" if run[-1] != "1" else "2"), {})
