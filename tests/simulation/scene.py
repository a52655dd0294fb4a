"""One story told step by step: owners over one bucket, a world that remembers what they did to it, a trip wire.

Histories (`store_history.py`) meet everything by chance; a scene puts the crash exactly where a promise is made.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.errors import HeadraceError
from cluster.log import LogOptions
from cluster.log.codec import decode_segment
from cluster.simulation import LoopClock, Process, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket
from pipelines.engine.core import EngineLimits
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import SendResult, WebhookSigner
from pipelines.verify.reading import verify_bucket

__all__ = ["ENDED", "Owner", "Scene", "World", "play"]

T = TypeVar("T")
ENDED = ("SUCCESS", "FAILED", "CANCELLED")
SETTINGS = StoreSettings(watch_owner_s=1000.0, submit_linger_s=0.0, step_linger_s=0.0)
"""Owners of a scene look for a newer one only where they must: before they act on what they wrote."""


@dataclass
class Tripwire(MemoryBucket):
    """Does something once, when a log segment that holds all of `needle` is written: before or after it is stored."""

    needle: tuple[str, ...] = ()
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def _create(self, key: str, data: bytes) -> None:
        hit = bool(self.needle) and "/wal/" in key and self._holds(decode_segment(data, key=key).records)
        if hit:
            self.needle = ()
            if self.before is not None:
                self.before()
                return
        super()._create(key, data)
        if hit and self.after is not None:
            self.after()

    def _holds(self, records: Sequence[bytes]) -> bool:
        return any(all(word.encode() in record for word in self.needle) for record in records)


@dataclass
class World:
    """What stands outside the run store and outlives its owners: the effects of steps, and received messages.

    `work_s` is how long each step takes; steps named in `stubborn` go on working after they were told to stop, and
    then hand in what they have.
    """

    work_s: dict[str, float] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    effects: list[tuple[str, Attempt]] = field(default_factory=list)
    """(owner, attempt), in the order in which the work began."""
    received: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(owner, message id, body) of every webhook that reached its receiver."""

    def did(self, step_id: str) -> list[Attempt]:
        """The attempts of a step that began, oldest first."""
        return [attempt for _, attempt in self.effects if attempt.step_id == step_id]

    def by(self, owner: str) -> list[str]:
        """The steps that an owner had begun."""
        return [attempt.step_id for name, attempt in self.effects if name == owner]

    @property
    def charges(self) -> int:
        """What a receiver that drops repeats by their idempotency key has booked."""
        return len({attempt.idempotency_key for _, attempt in self.effects})


@dataclass
class Hand:
    """An owner's executor and sender: it acts on the world."""

    world: World
    owner: str

    async def run(self, attempt: Attempt) -> Outcome:
        self.world.effects.append((self.owner, attempt))
        try:
            await asyncio.sleep(self.world.work_s.get(attempt.step_id, 0.0))
        except asyncio.CancelledError:
            if attempt.step_id not in self.world.stubborn:
                raise
            await asyncio.sleep(self.world.work_s.get(attempt.step_id, 0.0))
        return Outcome(status="success", output={"fence": attempt.fence})

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult:
        self.world.received.append((self.owner, headers["webhook-id"], body))
        return SendResult(status=204)

    async def close(self) -> None:
        return None


@dataclass
class Owner:
    """One process that owns, or believes to own, the store."""

    process: Process
    store: RunStore
    fatal: list[BaseException] = field(default_factory=list)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have it do something, and do not wait."""
        return self.process.spawn(work)

    async def ask(self, work: Coroutine[Any, Any, T], *, within_s: float = 100.0) -> T:
        """Its answer. Fails when none comes: it is dead, or stuck."""
        task = self.process.spawn(work)
        await asyncio.wait([task], timeout=within_s)
        assert task.done(), f"{self.process.name} gave no answer within {within_s:g} s"
        return task.result()

    async def ended(self, run_id: str, *, within_s: float = 60.0) -> dict[str, Any]:
        """The run's view once it has ended."""
        for _ in range(int(within_s / 0.1)):
            view = await self.ask(self.store.get(run_id))
            if view["state"] in ENDED:
                return view
            await asyncio.sleep(0.1)
        raise AssertionError(f"run {run_id} has not ended: {view}")


@dataclass
class Scene:
    """A bucket, a world, and owners one after another."""

    loop: SimLoop
    bucket: Tripwire
    world: World = field(default_factory=World)
    owners: list[Owner] = field(default_factory=list)

    async def owner(
        self,
        *,
        settings: StoreSettings = SETTINGS,
        limits: EngineLimits | None = None,
        log: LogOptions | None = None,
        crash_at: int | None = None,
        freeze_at: int | None = None,
    ) -> Owner:
        """Start the next owner in its own process; the ones before are fenced, or dead, or do not know yet.

        One that is told to end while it starts is given back as it is.
        """
        number = len(self.owners) + 1
        clock = LoopClock(self.loop)
        hand = Hand(self.world, f"owner-{number}")
        fatal: list[BaseException] = []
        store = RunStore(
            shard=0,
            bucket=self.bucket,
            executor=hand,
            clock=clock,
            ids=SeededIds(clock, random.Random(number)),
            random=random.Random(1).random,
            sender=hand,
            signer=WebhookSigner(secret=None),
            webhook_policy=OutboundPolicy(open_world=True),
            settings=settings,
            engine_limits=limits,
            log_options=log or LogOptions(collect=False),
            on_fatal=fatal.append,
        )
        process = Process(hand.owner, crash_at=crash_at, freeze_at=freeze_at, freeze_s=60.0)
        owner = Owner(process, store, fatal)
        self.owners.append(owner)
        starting = owner.begin(store.start())
        await asyncio.wait([starting], timeout=10.0)
        if starting.done():
            starting.result()
        else:
            assert not process.alive or process.frozen, "it does not start"
        return owner

    def trip(
        self, *needle: str, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
    ) -> None:
        """Do something when a segment that holds these words is written: in its place, or once it is stored."""
        self.bucket.needle, self.bucket.before, self.bucket.after = needle, before, after

    async def until(self, check: Callable[[], object], *, within_s: float = 300.0) -> None:
        """Wait until something holds."""
        for _ in range(int(within_s / 0.01)):
            if check():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("what the scene waits for does not come")

    async def verified(self, *run_ids: str) -> None:
        """The invariants hold over the whole log, and exactly these runs are there."""
        report = await verify_bucket(MemoryBucket(self.bucket.objects), acknowledged=run_ids)
        assert report.violations == []
        assert report.counts["runs"] == len(run_ids)


async def refused(work: Awaitable[object]) -> HeadraceError:
    """The error with which a call is refused."""
    try:
        await work
    except HeadraceError as error:
        return error
    raise AssertionError("the call was not refused")


def play(scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario over a bucket that takes ten milliseconds each way."""

    def start(loop: SimLoop) -> Coroutine[Any, Any, None]:
        faults = Faults(random.Random(1), latency_s=(0.01, 0.01))
        return scenario(Scene(loop, Tripwire(faults=faults, network=Context())))

    simulate(start)
