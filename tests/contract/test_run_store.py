"""One run store, any bucket: what was acknowledged is found by the next owner, and the owner before it is fenced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from cluster.errors import Fenced, HeadraceError, StorageUnavailable
from cluster.storage import Bucket
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.testing import StoreFactory, until, wait_ended

WORKFLOW = """
workflow:
  name: two
  steps:
    - {id: a, type: python_script}
    - {id: b, type: python_script, input: "{{steps.a.output}}"}
"""

# (A real server on a busy machine may take longer for a write than callers are kept waiting for it.)
PATIENT = StoreSettings(durable_timeout_s=300, read_timeout_s=300)

T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """As a client does it: what may be tried again is tried again."""
    for _ in range(20):
        try:
            return await call()
        except StorageUnavailable:
            continue
    return await call()


async def test_a_second_owner_goes_on_and_the_first_is_fenced(bucket: Bucket) -> None:
    """Runs, keys, events and archived runs are found by the successor; the zombie's results are refused."""
    factory = StoreFactory(bucket=bucket, settings=PATIENT)
    executor = FakeExecutor()
    zombie = factory.make(executor)
    await zombie.start()
    script = b"def main(input): return input\n"
    await patiently(lambda: zombie.register({"workflow": WORKFLOW, "files": {"a.py": script, "b.py": script}}))
    done = await zombie.submit({"workflow": "two", "input": 1})
    await wait_ended(zombie, done["id"])
    await patiently(zombie.archiver.snapshot)
    executor.hold("b")
    request = {"workflow": "two", "input": {"text": "x" * 200_000}, "idempotency_key": "k"}
    half = await patiently(lambda: zombie.submit(request))
    await executor.wait_started(2, "b")
    seen = await zombie.events(half["id"], 0, 0)

    second = FakeExecutor()
    async with factory.running(second) as store:
        view = await wait_ended(store, half["id"])
        assert view["state"] == "SUCCESS"
        assert [attempt.step_id for attempt in second.started] == ["b"]
        assert (await store.events(half["id"], 0, 0))["events"][: len(seen["events"])] == seen["events"]
        assert (await patiently(lambda: store.get(done["id"])))["output"] == {"b": 1}
        assert (await store.submit(request))["id"] == half["id"]
        executor.release("b")
        await until(lambda: factory.fatal)
        assert isinstance(factory.fatal[0], Fenced)
        with pytest.raises(HeadraceError):
            await zombie.submit({"workflow": "two"})
        assert len((await patiently(lambda: store.list_runs({})))["runs"]) == 2
    await zombie.close()
