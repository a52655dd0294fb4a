"""The link between a run store and the control plane, over a control plane that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import Forbidden, HeadraceError, InternalError, Overloaded, StorageUnavailable, Unavailable
from cluster.slots import Arbiter, Ask, Holder, Reply, Report
from pipelines.engine.core import EngineLimits
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.control_link import ControlLink
from pipelines.run_store.service import RunStore
from pipelines.run_store.testing import SaidHost, StoreFactory, until, wait_ended

CALL = """
workflow:
  name: call
  steps:
    - {id: a, type: http_request, url: "https://ann:secret@API.example.com/x"}
"""
BAD = Outcome(status="failed", error={"code": "http_status", "message": "503", "details": {"status": 503}})


class PlayedControl:
    """Answers `watch` with what a test put there, and keeps what it was told; `down` makes it unreachable."""

    def __init__(self) -> None:
        self.tables: asyncio.Queue[Any] = asyncio.Queue()
        self.told: list[Mapping[str, Any]] = []
        self.down = False
        self.why: HeadraceError = Unavailable("away")
        self.arbiter = Arbiter(epoch=1, shards=2)

    def say(self, revision: int, **hosts: SaidHost) -> None:
        named = {name.replace("_", "."): said for name, said in hosts.items()}
        table = SimpleNamespace(revision=revision, models={}, routes={}, hosts=named, run_store_shards=1)
        self.tables.put_nowait(table)

    async def watch(self, revision: int, timeout_s: float) -> Any:
        if self.down:
            raise self.why
        return await self.tables.get()

    async def call(self, method: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.down:
            raise Unavailable("away")
        self.told.append(payload)
        return {}

    async def slots(self, report: Report, wait_s: float) -> Reply | None:
        if self.down:
            raise Unavailable("away")
        asked = self.arbiter
        reply = asked.handle(report)
        if reply is None or not reply.known:
            return reply
        give_up = asyncio.get_running_loop().time() + wait_s
        while wait_s and not self.arbiter.has_news(report) and asyncio.get_running_loop().time() < give_up:
            await asyncio.sleep(0.001)
            if self.down or self.arbiter is not asked:
                raise Unavailable("it died")
        return asked.handle(report)


@asynccontextmanager
async def linked(store: RunStore, control: PlayedControl) -> AsyncIterator[None]:
    running = asyncio.create_task(ControlLink(store=store, control=control, again_s=0.01, gather_s=0.01).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_failures_are_told_and_the_answer_parks_steps() -> None:
    """The host is named without the credentials in its URL."""
    control = PlayedControl()
    async with StoreFactory().running(FakeExecutor(answers={"a": BAD})) as store, linked(store, control):
        await store.register({"workflow": CALL})
        await wait_ended(store, (await store.submit({"workflow": "call"}))["id"])
        await until(lambda: control.told)
        assert control.told[0]["hosts"][0]["host"] == "api.example.com"
        control.say(4, api_example_com=SaidHost(since=4))
        await until(lambda: store.status()["hosts"])
        run = await store.submit({"workflow": "call"})
        assert (await store.get(run["id"]))["steps"][0]["waiting"]["key"] == "host:api.example.com"
        control.say(5)
        await until(lambda: not store.status()["hosts"])
        assert (await wait_ended(store, run["id"]))["state"] == "FAILED"


async def test_while_the_control_plane_is_away_the_last_word_holds_and_nothing_is_forgotten() -> None:
    """Steps stay parked, others run, and what they saw is told when it is back."""
    control = PlayedControl()
    async with StoreFactory().running(FakeExecutor(answers={"a": BAD})) as store, linked(store, control):
        await store.register({"workflow": CALL})
        await store.register({"workflow": CALL.replace("name: call", "name: other").replace("API.", "other.")})
        control.say(4, api_example_com=SaidHost(since=4))
        await until(lambda: store.status()["hosts"])
        control.down = True
        parked = await store.submit({"workflow": "call"})
        await wait_ended(store, (await store.submit({"workflow": "other"}))["id"])
        assert (await store.get(parked["id"]))["steps"][0]["waiting"]["for"] == "breaker"
        assert control.told == []
        control.down = False
        control.say(5)
        await until(lambda: control.told)
        assert control.told[0]["hosts"][0]["host"] == "other.example.com"
        assert (await wait_ended(store, parked["id"]))["state"] == "FAILED"


@pytest.mark.parametrize(
    "why", [StorageUnavailable("503"), Overloaded("busy"), Forbidden("no"), InternalError("defect")]
)
async def test_whatever_the_control_plane_answers_with_the_link_goes_on(why: HeadraceError) -> None:
    """An answer that is no table ends neither the link nor the store; the next table is taken."""
    control = PlayedControl()
    control.why, control.down = why, True
    async with StoreFactory().running() as store, linked(store, control):
        await asyncio.sleep(0.03)
        control.down = False
        control.say(4, api_example_com=SaidHost(since=4))
        await until(lambda: store.status()["hosts"])


CALLS = """
workflow:
  name: calls
  steps:
    - {id: a, type: python_script}
    - {id: b, type: model_inference, model: MODEL, input: "{{steps.a.output}}"}
"""


def sleeping(wakes: bool) -> Any:
    config = SimpleNamespace(fallback=(), task="generic")
    version = SimpleNamespace(ejected=False, half_open=False, wakes=wakes, signature=None)
    return SimpleNamespace(versions={"1.0.0": version}, config=config)


async def test_a_run_that_begins_tells_which_sleeping_model_it_will_call() -> None:
    """At its submit, long before the step; not of models that never sleep. One that is away harms nobody."""
    control = PlayedControl()
    async with StoreFactory().running(FakeExecutor()) as store, linked(store, control):
        for model in ("idle", "busy"):
            await store.register({"workflow": CALLS.replace("calls", model).replace("MODEL", model)})
        models = {"idle": sleeping(True), "busy": sleeping(False)}
        control.tables.put_nowait(SimpleNamespace(revision=4, models=models, routes={}, hosts={}))
        await until(lambda: control.tables.empty() and store.known is not None)
        control.down = True
        await wait_ended(store, (await store.submit({"workflow": "idle"}))["id"])
        control.down = False
        assert control.told == []
        for _ in range(3):
            await wait_ended(store, (await store.submit({"workflow": "busy"}))["id"])
        await wait_ended(store, (await store.submit({"workflow": "idle"}))["id"])
        await until(lambda: control.told)
        assert control.told == [{"models": ["idle"]}]
        assert store.kernel.wanted == set()


LOCKED = "workflow: {name: locked, steps: [{id: a, type: python_script, concurrency: one}]}"


def rival_of(arbiter: Arbiter) -> Holder:
    """The other shard, which is known to the arbiter."""
    rival = Holder(shard=1, life=1)
    settle(rival, arbiter)
    return rival


def settle(holder: Holder, arbiter: Arbiter) -> None:
    for _ in range(3):
        reply = arbiter.handle(holder.report())
        if reply is not None:
            holder.take(reply)


async def test_a_lock_of_another_shard_is_waited_for_over_a_new_control_plane() -> None:
    """The step waits visibly while the other holds it, also when the arbiter died in between, and then runs."""
    control = PlayedControl()
    executor = FakeExecutor()
    factory = StoreFactory(engine_limits=EngineLimits(shared=True))
    async with factory.running(executor) as store, linked(store, control):
        rival = rival_of(control.arbiter)
        await store.register({"workflow": LOCKED})
        rival.ask(Ask(ticket=1, rank=0, needs=(("lock:one", 1),)))
        await until(lambda: control.arbiter.ready)
        settle(rival, control.arbiter)
        assert rival.held
        run = await store.submit({"workflow": "locked"})
        assert (await store.get(run["id"]))["steps"][0]["waiting"] == {"for": "lock", "key": "one"}
        control.arbiter = Arbiter(epoch=2, shards=2)
        settle(rival, control.arbiter)
        await until(lambda: control.arbiter.ready)
        assert executor.started == []
        rival.done(1)
        settle(rival, control.arbiter)
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"
        assert executor.started[0].lock_fence is not None
        await until(lambda: control.arbiter.view() == [])


async def test_a_killed_shard_asks_again_and_its_old_lock_is_free() -> None:
    """What it ran runs again, under a higher fence, and when its run is cancelled nothing stays held."""
    control = PlayedControl()
    factory = StoreFactory(engine_limits=EngineLimits(shared=True))
    first, second = FakeExecutor(), FakeExecutor()
    first.hold("a")
    second.hold("a")
    async with factory.running(first) as store, linked(store, control):
        rival_of(control.arbiter)
        await store.register({"workflow": LOCKED})
        run = await store.submit({"workflow": "locked"})
        await until(lambda: first.started)
    async with factory.running(second) as store, linked(store, control):
        await until(lambda: second.started)
        before, after = first.started[0].lock_fence, second.started[0].lock_fence
        assert before is not None
        assert after is not None
        assert after > before
        await store.cancel(run["id"])
        await until(lambda: control.arbiter.view() == [])
