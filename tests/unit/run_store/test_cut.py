"""A snapshot that is written down while runs go on holds the state of its beginning."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import HeadraceError
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.cut import Cut
from pipelines.run_store.service import RunStore
from pipelines.run_store.snapshots import split_snapshot
from pipelines.run_store.testing import StoreFactory

OUTER = """
workflow:
  name: outer
  steps:
    - {id: each, type: python_script, foreach: {items: "{{input.numbers}}", max_parallel: 2}}
    - {id: nest, type: workflow, workflow: inner, depends_on: [each]}
"""
INNER = "workflow: {name: inner, steps: [{id: a, type: python_script}, {id: b, type: python_script, depends_on: [a]}]}"


def state_of(store: RunStore) -> tuple[Any, Any]:
    """The state now, in one go."""
    return orjson.loads(store.kernel.engine.dump()), orjson.loads(orjson.dumps(store.kernel.memory.to_state()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), before=st.integers(0, 6), during=st.integers(1, 8))
async def test_a_cut_is_of_the_instant_it_began(seed: int, before: int, during: int) -> None:
    """Whatever is submitted, started, ended, cancelled, archived or brought back while it is written."""
    draw = random.Random(seed)
    executor = FakeExecutor()
    executor.hold("b")
    async with StoreFactory().running(executor) as store:
        for workflow in (INNER, OUTER):
            await store.register({"workflow": workflow})
        ids: list[str] = []

        async def something() -> None:
            kind = draw.choice(["submit", "submit", "release", "cancel", "archive", "resume"])
            if kind == "submit":
                request = {"workflow": "outer", "input": {"numbers": [1, 2, 3]}, "idempotency_key": str(len(ids))}
                ids.append((await store.submit(request))["id"])
            elif kind == "release":
                executor.release("b")
            elif kind == "archive":
                await store.archiver.archive()
            elif ids:
                run_id = draw.choice(ids)
                try:
                    await (store.cancel(run_id) if kind == "cancel" else store.resume(run_id, {}))
                except HeadraceError:
                    return  # it has ended, or has not

        for _ in range(before):
            await something()
        expected = state_of(store)
        time = itertools.count()
        # This clock passes a whole slice at every look, so that there is a pause after every run.
        cut = Cut(
            engine=store.kernel.engine,
            memory=store.kernel.memory,
            monotonic=lambda: float(next(time)),
        )
        body = asyncio.create_task(cut.body())
        for _ in range(during):
            await something()
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
        engine, memory = map(orjson.loads, split_snapshot(await body))
        assert engine == expected[0]
        assert memory == expected[1]


async def test_a_new_owner_starts_from_a_cut() -> None:
    """A snapshot of the archiver is what the next owner recovers from, with runs in flight going on."""
    factory = StoreFactory()
    executor = FakeExecutor()
    executor.hold("a")
    async with factory.running(executor) as store:
        await store.register({"workflow": INNER})
        run_id = (await store.submit({"workflow": "inner", "input": {}}))["id"]
        await executor.wait_started(1)
        await store.archiver.snapshot()
    async with factory.running() as store:
        assert (await store.events(run_id, 0, 5.0))["events"]
        assert run_id in store.kernel.engine
