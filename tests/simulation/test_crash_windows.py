"""The three crash windows of asynchronous inference, each by name, and the lost answers around them.

Ray's documentation of asynchronous inference lists them: a crash after the work but before the checkpoint, after the
checkpoint but before the acknowledgement, and after the acknowledgement was lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.errors import StorageUnavailable
from cluster.log import LogOptions
from cluster.log.codec import decode_segment
from cluster.simulation import LoopClock, Process, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.webhooks import SendResult, WebhookSigner
from pipelines.verify.reading import verify_bucket
from tests.simulation.log_history import inline

WORKFLOW = {"name": "w", "steps": [{"id": "work", "type": "python_script"}]}


@dataclass
class Tripwire(MemoryBucket):
    """Does something once, when a log segment that holds `needle` is written: before, or after it is stored."""

    needle: bytes = b""
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def _create(self, key: str, data: bytes) -> None:
        armed = self.needle and "/wal/" in key
        hit = armed and any(self.needle in record for record in decode_segment(data, key=key).records)
        if hit:
            self.needle = b""
            if self.before is not None:
                self.before()
                return
        super()._create(key, data)
        if hit and self.after is not None:
            self.after()


@dataclass
class Counting:
    """Every step succeeds at once; `done` lists the attempts."""

    done: list[Attempt] = field(default_factory=list)

    async def run(self, attempt: Attempt) -> Outcome:
        self.done.append(attempt)
        return Outcome(status="success", output={"fence": attempt.fence})

    async def close(self) -> None:
        return None


class NoSender:
    """No webhooks here."""

    async def post(self, *args: Any, **more: Any) -> SendResult:
        raise AssertionError("no webhook was asked for")

    async def close(self) -> None:
        return None


@dataclass
class Scene:
    """A bucket, and run stores over it one after another."""

    loop: SimLoop
    bucket: Tripwire
    executor: Counting = field(default_factory=Counting)
    owners: int = 0

    async def owner(self) -> tuple[Process, RunStore]:
        """Start the next owner in its own process."""
        self.owners += 1
        clock = LoopClock(self.loop)
        process = Process(f"owner-{self.owners}")
        store = RunStore(
            shard=0,
            bucket=self.bucket,
            executor=self.executor,
            clock=clock,
            ids=SeededIds(clock, random.Random(self.owners)),
            random=random.Random(1).random,
            sender=NoSender(),
            signer=WebhookSigner(secret=None),
            webhook_policy=OutboundPolicy(open_world=True),
            log_options=LogOptions(offload=inline, pending_bytes=1 << 40),
        )
        await process.spawn(store.start())
        return process, store

    async def ended(self, process: Process, store: RunStore, run_id: str) -> dict[str, Any]:
        """The run's view once it has ended."""
        while True:
            view: dict[str, Any] = await process.spawn(store.get(run_id))
            if view["state"] in ("SUCCESS", "FAILED", "CANCELLED"):
                return view
            await asyncio.sleep(0.1)

    async def verified(self, *run_ids: str) -> None:
        """The invariants hold and these runs are there."""
        report = await verify_bucket(MemoryBucket(self.bucket.objects), acknowledged=run_ids)
        assert report.violations == []
        assert report.counts["runs"] == len(run_ids)


def play(scenario: Callable[[Scene], Any]) -> None:
    """Run a scenario over a bucket that takes a millisecond per call."""

    def start(loop: SimLoop) -> Any:
        faults = Faults(random.Random(1), latency_s=(0.001, 0.001))
        return scenario(Scene(loop, Tripwire(faults=faults, network=Context())))

    simulate(start)


def test_window_1_after_the_work_before_the_checkpoint() -> None:
    """The step ran, its result was not durable yet: it runs again, and one result is committed, under the new fence."""

    async def scenario(scene: Scene) -> None:
        first, store = await scene.owner()
        await first.spawn(store.register({"workflow": WORKFLOW}))
        scene.bucket.needle, scene.bucket.before = b"StepSucceeded", first.crash
        run_id = (await first.spawn(store.submit({"workflow": "w", "input": {}})))["id"]
        await asyncio.sleep(1)
        assert not first.alive
        assert len(scene.executor.done) == 1
        second, store = await scene.owner()
        view = await scene.ended(second, store, run_id)
        assert view["state"] == "SUCCESS"
        keys = {attempt.idempotency_key for attempt in scene.executor.done}
        fences = [attempt.fence for attempt in scene.executor.done]
        assert len(scene.executor.done) == 2
        assert len(keys) == 1, "the step can recognise its second try"
        assert fences == sorted(set(fences))
        assert view["steps"][0]["output"] == {"fence": fences[-1]}
        await scene.verified(run_id)

    play(scenario)


def test_window_2_after_the_checkpoint_before_the_acknowledgement() -> None:
    """The result was durable, its owner died before it knew: the result is found and the step is not run again."""

    async def scenario(scene: Scene) -> None:
        first, store = await scene.owner()
        await first.spawn(store.register({"workflow": WORKFLOW}))
        scene.bucket.needle, scene.bucket.after = b"StepSucceeded", first.crash
        run_id = (await first.spawn(store.submit({"workflow": "w", "input": {}})))["id"]
        await asyncio.sleep(1)
        assert not first.alive
        second, store = await scene.owner()
        view = await scene.ended(second, store, run_id)
        assert view["state"] == "SUCCESS"
        assert len(scene.executor.done) == 1
        await scene.verified(run_id)

    play(scenario)


def test_window_3_after_the_acknowledgement_was_lost() -> None:
    """The submit was durable, the caller never heard: its repeat with the same key gets the same run, run once."""

    async def scenario(scene: Scene) -> None:
        first, store = await scene.owner()
        await first.spawn(store.register({"workflow": WORKFLOW}))
        request = {"workflow": "w", "input": {}, "idempotency_key": "k"}
        scene.bucket.needle, scene.bucket.after = b"RunSubmitted", first.crash
        answer = first.spawn(store.submit(request))
        await asyncio.sleep(1)
        assert not first.alive
        assert not answer.done()
        second, store = await scene.owner()
        repeated = await second.spawn(store.submit(request))
        assert repeated["created"] is False
        assert (await scene.ended(second, store, repeated["id"]))["state"] == "SUCCESS"
        await scene.verified(repeated["id"])

    play(scenario)


@pytest.mark.parametrize("fact", [b"RunSubmitted", b"AttemptStarted", b"StepSucceeded", b"RunSucceeded"])
def test_the_buckets_lost_answer_doubles_nothing(fact: bytes) -> None:
    """The segment was stored but the bucket's answer was lost: the write is repeated and counts once."""

    async def scenario(scene: Scene) -> None:
        def lose() -> None:
            raise StorageUnavailable("no answer (injected)")

        process, store = await scene.owner()
        await process.spawn(store.register({"workflow": WORKFLOW}))
        scene.bucket.needle, scene.bucket.after = fact, lose
        run_id = (await process.spawn(store.submit({"workflow": "w", "input": {}})))["id"]
        assert (await scene.ended(process, store, run_id))["state"] == "SUCCESS"
        assert len(scene.executor.done) == 1
        assert process.alive
        await scene.verified(run_id)

    play(scenario)
