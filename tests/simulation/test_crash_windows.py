"""The three crash windows of asynchronous inference, each by name, and the guards that keep each of them shut.

Ray's documentation of asynchronous inference lists them: a crash after the work but before the checkpoint, after the
checkpoint but before the acknowledgement, and after the acknowledgement was lost. Real kernel, log, engine and
verifier; only the bucket, the workers and the receivers are simulated. What the workers did to the outside world is
kept apart from what the store believes (`World`), since that is what a user pays for.

| window | guard | where | its mutants in tests/mutations |
|---|---|---|---|
| 1 | nothing follows from a result, and nobody is told, before it is durable | kernel `commit`, reading `get` | act-before-durable, show-before-durable |
| 1 | work in flight is begun again, under a higher fence and the same idempotency key | engine `recover_run`, `build_attempt` | lost-attempt-stays-lost, key-per-attempt |
| 1 | an owner that was only asleep cannot write any more | log `_create_surely` | zombie-believes-it-wrote |
| 1 | of two attempts that one owner began only the newer may hand in | engine `_in_flight` | stale-fence |
| 2 | what is durable is found, taken for done, and its followers begin once | engine `recover_run`, `State.apply` | recovery-forgets-followers, recovery-drops-tail |
| 2 | an owner that learns late that its write succeeded looks for a newer owner first | log `_create_surely` | late-answer-trusted, repeated-write-trusted |
| 3 | keys come back from the log and from snapshots | `Memory._submitted`, `IdempotencyKeys` | key-not-logged, keys-not-in-snapshot |
| 3 | a repeat with the same run id is the same submit | service `submit` | run-id-not-looked-up |
| 3 | a key is taken before its submit waits for anything | `IdempotencyKeys.begin` | key-taken-too-late |
| 3 | one's own bytes under the number that one wrote are no rival's | log `_create_surely` | own-write-is-a-rival |
| 3 | a message is settled by a durable fact, and repeated under the same id until then | outbox | webhook-id-per-try, webhook-try-not-logged |
"""  # noqa: E501 - a table

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import Conflict, Fenced, StorageUnavailable, Unprocessable
from cluster.log import LogOptions
from pipelines.engine.core import EngineLimits
from tests.simulation.scene import SETTINGS, Scene, play, refused

ORDER = {
    "name": "order",
    "steps": [
        {"id": "charge", "type": "python_script"},
        {"id": "ship", "type": "python_script", "input": "{{steps.charge.output}}"},
    ],
}


async def watch(store: Any, run_id: str, seen: list[str]) -> None:
    """A client that asks all the time, and keeps the steps that it was shown as done."""
    while True:
        view = await store.get(run_id)
        seen += [step["id"] for step in view["steps"] if step["state"] == "SUCCESS"]
        await asyncio.sleep(0.001)


# ---- window 1: after the work, before the checkpoint ----


def test_window_1_after_the_work_before_the_checkpoint() -> None:
    """The work was done, its result lost: nobody had been told, nothing had followed; it is done again under a higher
    fence and the same key, so a receiver that knows keys books it once."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.trip("StepSucceeded", '"charge"', before=first.process.crash)
        scene.world.work_s["charge"] = 0.1
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        seen: list[str] = []
        first.begin(watch(first.store, run_id, seen))
        await scene.until(lambda: not first.process.alive)
        assert scene.world.by("owner-1") == ["charge"], "a step began before the result it needs was durable"
        assert seen == [], "a result was shown before it was durable"
        second = await scene.owner()
        view = await second.ended(run_id)
        assert view["state"] == "SUCCESS"
        assert scene.world.by("owner-2") == ["charge", "ship"]
        (again,) = scene.world.did("charge")[1:]
        assert again.fence > scene.world.did("charge")[0].fence
        assert scene.world.charges == 2, "one charge and one shipment"
        assert scene.world.did("ship")[0].input == {"fence": again.fence}
        await scene.verified(run_id)

    play(scenario)


def test_window_1_its_owner_was_only_asleep() -> None:
    """The owner sleeps through its replacement and wakes with the old result in its hand: it cannot commit it, tells
    nobody, begins nothing, and ends."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.world.work_s["charge"] = 1.0
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: scene.world.did("charge"))
        first.process.freeze(60.0)
        second = await scene.owner()
        view = await second.ended(run_id)
        seen: list[str] = []
        first.begin(watch(first.store, run_id, seen))
        await scene.until(lambda: first.fatal)
        await asyncio.sleep(30)
        assert isinstance(first.fatal[0], Fenced)
        assert scene.world.by("owner-1") == ["charge"]
        assert seen == [], "a zombie showed a result that is not the committed one"
        assert scene.world.by("owner-2") == ["charge", "ship"]
        assert await second.ask(second.store.get(run_id)) == view
        assert view["steps"][0]["output"] == {"fence": scene.world.did("charge")[1].fence}
        await scene.verified(run_id)

    play(scenario)


@pytest.mark.parametrize("item", [False, True], ids=["step", "item"])
def test_window_1_a_replaced_attempt_hands_in_late(item: bool) -> None:
    """An attempt was given up and another began; when the first hands in after all, its result is refused and the
    second one's counts."""
    charge: dict[str, Any] = {
        "id": "charge", "type": "python_script", "timeout": 5, "retry": {"max_attempts": 2, "initial_interval": 1},
    }  # fmt: skip
    if item:
        charge["foreach"] = {"items": [1]}

    async def scenario(scene: Scene) -> None:
        owner = await scene.owner(limits=EngineLimits(attempt_grace_s=1.0))
        await owner.ask(owner.store.register({"workflow": {"name": "slow", "steps": [charge]}}))
        scene.world.work_s["charge"] = 1000.0
        scene.world.stubborn.add("charge")
        run_id = (await owner.ask(owner.store.submit({"workflow": "slow", "input": {}})))["id"]
        await scene.until(lambda: scene.world.did("charge"))
        scene.world.work_s["charge"] = 4.0  # from now on: the stubborn one hands in while the second one works
        await scene.until(lambda: len(scene.world.did("charge")) == 2)
        view = await owner.ended(run_id)
        first, second = scene.world.did("charge")
        assert owner.fatal == []
        assert second.fence > first.fence
        output = view["steps"][0]["output"]
        assert (output[0] if item else output) == {"fence": second.fence}
        await scene.verified(run_id)

    play(scenario)


# ---- window 2: after the checkpoint, before the acknowledgement ----


def test_window_2_after_the_checkpoint_before_the_acknowledgement() -> None:
    """The result was durable, its owner died before it knew: the work is not done again, and what follows from it
    begins, once."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.trip("StepSucceeded", '"charge"', after=first.process.crash)
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: not first.process.alive)
        assert scene.world.by("owner-1") == ["charge"]
        second = await scene.owner()
        view = await second.ended(run_id)
        assert view["state"] == "SUCCESS"
        assert scene.world.by("owner-2") == ["ship"]
        assert scene.world.did("ship")[0].input == {"fence": scene.world.did("charge")[0].fence}
        await scene.verified(run_id)

    play(scenario)


def test_window_2_with_a_full_house() -> None:
    """What follows had no room to begin when its owner died after the checkpoint: it begins once there is room."""

    async def scenario(scene: Scene) -> None:
        narrow = EngineLimits(max_parallel_steps=1)
        first = await scene.owner(limits=narrow)
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.trip("StepSucceeded", '"charge"', after=first.process.crash)
        scene.world.work_s["charge"] = 1.0
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        other = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: not first.process.alive)
        second = await scene.owner(limits=narrow)
        for waiting in (run_id, other):
            assert (await second.ended(waiting))["state"] == "SUCCESS"
        assert sorted(scene.world.by("owner-2")) == ["charge", "ship", "ship"]
        await scene.verified(run_id, other)

    play(scenario)


def test_window_2_the_owner_learns_of_its_checkpoint_too_late() -> None:
    """While an owner sleeps over the bucket's answer, its successor takes the result over and acknowledges a cancel:
    the first one wakes, learns that its write had succeeded, and must not begin what would follow from it."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.trip("StepSucceeded", '"charge"', after=lambda: first.process.freeze(60.0))
        scene.world.work_s["ship"] = 1000.0
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: first.process.frozen)
        second = await scene.owner()
        await scene.until(lambda: scene.world.did("ship"))
        assert (await second.ask(second.store.cancel(run_id)))["state"] == "CANCELLED"
        await scene.until(lambda: first.fatal)
        await asyncio.sleep(30)
        assert isinstance(first.fatal[0], Fenced)
        assert scene.world.by("owner-1") == ["charge"], "a zombie began a step after the cancel was acknowledged"
        assert scene.world.by("owner-2") == ["ship"]
        await scene.verified(run_id)

    play(scenario)


def test_window_2_a_repeated_write_is_as_doubtful() -> None:
    """The answer was lost, and the write is found done when it is repeated: by then a successor may have gone on."""

    async def scenario(scene: Scene) -> None:
        def lose() -> None:
            raise StorageUnavailable("no answer (injected)")

        patient = LogOptions(retry_initial_s=50.0, retry_max_s=50.0, slow_write_s=1000.0)
        first = await scene.owner(log=patient)
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.trip("StepSucceeded", '"charge"', after=lose)
        scene.world.work_s["ship"] = 1000.0
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: first.store.kernel.log.trouble)
        second = await scene.owner()
        await scene.until(lambda: scene.world.did("ship"))
        assert (await second.ask(second.store.cancel(run_id)))["state"] == "CANCELLED"
        await scene.until(lambda: first.fatal)
        await asyncio.sleep(30)
        assert isinstance(first.fatal[0], Fenced)
        assert scene.world.by("owner-1") == ["charge"]
        await scene.verified(run_id)

    play(scenario)


# ---- window 3: after the acknowledgement was lost ----


@pytest.mark.parametrize("memory", ["log", "snapshot", "archive"])
def test_window_3_after_the_acknowledgement_was_lost(memory: str) -> None:
    """The submit was durable, the caller never heard: its repeat gets the same run, done once, whether the next owner
    knows it from the log, from a snapshot, or only from the archive; and so after a second crash."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        request = {"workflow": "order", "input": {"n": 1}, "idempotency_key": "k"}
        scene.trip("RunSubmitted", after=first.process.crash)
        answer = first.begin(first.store.submit(request))
        await scene.until(lambda: not first.process.alive)
        assert not answer.done()
        owner = await scene.owner()
        if memory != "log":
            (found,) = (await owner.ask(owner.store.list_runs({})))["runs"]
            if memory == "archive":
                await owner.ended(found["id"])
            await owner.ask(owner.store.archiver.snapshot())
            assert len(owner.store.kernel.memory.archive) == (memory == "archive")
            owner.process.crash()
            owner = await scene.owner()
        repeated = await owner.ask(owner.store.submit(request))
        assert repeated["created"] is False
        assert (await owner.ended(repeated["id"]))["state"] == "SUCCESS"
        other = await owner.ask(refused(owner.store.submit({**request, "input": {"n": 2}})))
        assert isinstance(other, Unprocessable)
        assert [attempt.step_id for _, attempt in scene.world.effects].count("ship") == 1
        await scene.verified(repeated["id"])

    play(scenario)


@pytest.mark.parametrize("archived", [False, True])
def test_window_3_a_repeat_with_the_same_run_id(archived: bool) -> None:
    """A caller without a key chooses the run's id (the HTTP surface does): sent again, it is the same submit."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        run_id = "run-0-" + first.store.kernel.ids.ulid()
        request = {"workflow": "order", "input": {}, "run_id": run_id}
        scene.trip("RunSubmitted", after=first.process.crash)
        first.begin(first.store.submit(request))
        await scene.until(lambda: not first.process.alive)
        second = await scene.owner()
        if archived:
            await second.ended(run_id)
            await second.ask(second.store.archiver.archive())
        repeated = await second.ask(second.store.submit(request))
        assert (repeated["id"], repeated["created"]) == (run_id, False)
        assert (await second.ended(repeated["id"]))["state"] == "SUCCESS"
        assert [attempt.step_id for _, attempt in scene.world.effects].count("ship") == 1
        await scene.verified(repeated["id"])

    play(scenario)


def test_window_3_a_repeat_that_overtakes() -> None:
    """Two submits with one key at the same moment, with an input so large that it goes to the bucket first: one run;
    the other caller is told to come again, and then gets it."""

    async def scenario(scene: Scene) -> None:
        owner = await scene.owner()
        await owner.ask(owner.store.register({"workflow": ORDER}))
        request = {"workflow": "order", "input": {"text": "x" * 100_000}, "idempotency_key": "k"}
        first = owner.begin(owner.store.submit(request))
        second = owner.begin(refused(owner.store.submit(request)))
        await scene.until(lambda: first.done() and second.done())
        assert isinstance(second.result(), Conflict)
        run_id = first.result()["id"]
        assert (await owner.ask(owner.store.submit(request)))["id"] == run_id
        assert (await owner.ended(run_id))["state"] == "SUCCESS"
        await scene.verified(run_id)

    play(scenario)


def test_window_3_a_cancel_whose_answer_was_lost() -> None:
    """The cancel was durable, its caller never heard: the run stays cancelled, a repeat says so, nothing begins."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        scene.world.work_s["charge"] = 1000.0
        run_id = (await first.ask(first.store.submit({"workflow": "order", "input": {}})))["id"]
        await scene.until(lambda: scene.world.did("charge"))
        scene.trip("RunCancelled", after=first.process.crash)
        first.begin(first.store.cancel(run_id))
        await scene.until(lambda: not first.process.alive)
        second = await scene.owner()
        await asyncio.sleep(30)
        assert (await second.ask(second.store.cancel(run_id)))["state"] == "CANCELLED"
        assert scene.world.by("owner-2") == []
        await scene.verified(run_id)

    play(scenario)


@pytest.mark.parametrize("lost", ["before", "after"])
def test_window_3_of_a_message(lost: str) -> None:
    """The receiver had the message, its answer was not recorded: it gets the same message again, under the same id.
    Once it is recorded the message is never sent again."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner()
        await first.ask(first.store.register({"workflow": ORDER}))
        crash: dict[str, Callable[[], None]] = {lost: first.process.crash}
        scene.trip("WebhookAttempted", **crash)
        request = {"workflow": "order", "input": {}, "webhook": {"url": "http://hooks.test/x"}}
        run_id = (await first.ask(first.store.submit(request)))["id"]
        await scene.until(lambda: not first.process.alive)
        second = await scene.owner()
        assert (await second.ended(run_id))["state"] == "SUCCESS"
        await asyncio.sleep(1000)
        senders = [owner for owner, _, _ in scene.world.received]
        assert senders == (["owner-1", "owner-2"] if lost == "before" else ["owner-1"])
        assert len({(message, body) for _, message, body in scene.world.received}) == 1
        await scene.verified(run_id)

    play(scenario)


@pytest.mark.parametrize("fact", ["RunSubmitted", "AttemptStarted", "StepSucceeded", "RunSucceeded"])
def test_the_buckets_lost_answer_doubles_nothing(fact: str) -> None:
    """The segment was stored but the bucket's answer was lost: the write is repeated and counts once."""

    async def scenario(scene: Scene) -> None:
        def lose() -> None:
            raise StorageUnavailable("no answer (injected)")

        owner = await scene.owner()
        await owner.ask(owner.store.register({"workflow": ORDER}))
        scene.trip(fact, after=lose)
        run_id = (await owner.ask(owner.store.submit({"workflow": "order", "input": {}})))["id"]
        assert (await owner.ended(run_id))["state"] == "SUCCESS"
        assert scene.world.by("owner-1") == ["charge", "ship"]
        assert owner.store.kernel.log.stats.retries == 1
        assert owner.fatal == []
        await scene.verified(run_id)

    play(scenario)


def test_an_owner_that_writes_nothing_learns_that_it_was_replaced() -> None:
    """A zombie with nothing to say still ends by itself, so that callers stop reading old states from it."""

    async def scenario(scene: Scene) -> None:
        first = await scene.owner(settings=replace(SETTINGS, watch_owner_s=5.0))
        await first.ask(first.store.register({"workflow": ORDER}))
        await scene.owner()
        await scene.until(lambda: first.fatal, within_s=20)
        assert isinstance(first.fatal[0], Fenced)

    play(scenario)


def test_a_start_that_is_cancelled_before_it_is_durable_is_not_begun() -> None:
    """A cancel overtakes the write that holds the start of a step: no worker ever sees the step."""

    async def scenario(scene: Scene) -> None:
        owner = await scene.owner()
        await owner.ask(owner.store.register({"workflow": ORDER}))
        run_id = "run-0-" + owner.store.kernel.ids.ulid()
        submitting = owner.begin(owner.store.submit({"workflow": "order", "input": {}, "run_id": run_id}))
        await asyncio.sleep(0.001)  # decided, and on its way to the bucket
        assert run_id in owner.store.kernel.engine
        assert not submitting.done()
        assert (await owner.ask(owner.store.cancel(run_id)))["state"] == "CANCELLED"
        assert submitting.result()["id"] == run_id
        await asyncio.sleep(10)
        assert scene.world.effects == []
        await scene.verified(run_id)

    play(scenario)
