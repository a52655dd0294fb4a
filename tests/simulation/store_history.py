"""One simulated history of a whole run store: clients, steps, owners that crash or freeze, a bucket that misbehaves.

It has some shards, whose number may change, each with owners of its own, behind the gateway that the HTTP surface
uses. What the clients do is in `store_clients.py`, what the world around it checks in `store_world.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import HeadraceError, Unavailable
from cluster.layout import Layout, Layouts
from cluster.log import LogOptions
from cluster.simulation import LoopClock, Process, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket
from pipelines.engine.core import EngineLimits
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import WebhookSigner
from pipelines.verify.reading import verify_bucket
from pipelines.verify.report import Report
from serve_apps.http.runs_gateway import ShardedRunsGateway
from tests.simulation.store_clients import Client
from tests.simulation.store_workflows import GROUPS, MODEL, NARROW, WORKFLOWS
from tests.simulation.store_world import Recorder, World, WorldExecutor, WorldSender

__all__ = ["StoreHistory"]


@dataclass
class Shard:
    """Who owns one shard now, or is believed to."""

    number: int
    store: RunStore | None = None
    process: Process = field(default_factory=lambda: Process("none"))


@dataclass
class StoreHistory:
    """Play it with `run`; an AssertionError is a found defect."""

    seed: int
    crash_first_at: int | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Idempotency key (or run id, where there was none) to the run id that was answered."""
    first: Process | None = None
    counts: Counter[str] = field(default_factory=Counter)
    report: Report | None = None

    def run(self) -> StoreHistory:
        """Play it to the end."""
        draw = self._draw = random.Random(self.seed)
        self.shards = [Shard(number) for number in range(draw.choice([1, 1, 2]))]
        self.first_shards = len(self.shards)
        self.layouts = Layouts.of([Layout(shards=len(self.shards), since=0.0)])
        self._changes = draw.choice([(), (), (1,), (2,), (3,), (3, 1), (2, 1, 2)])
        self.group = draw.choice(GROUPS)
        self._knows = draw.random() < 0.8  # otherwise a client registers the workflows, under all the faults
        if self._knows:
            self.objects.update(_registered(len(self.shards), self.group))
        simulate(self._main)
        return self

    async def _main(self, loop: SimLoop) -> None:
        draw = self._draw
        self._loop, self._clock = loop, LoopClock(loop)
        self._ids = SeededIds(self._clock, random.Random(draw.random()))
        self._faults = Faults(
            random.Random(draw.random()),
            latency_s=(0.001, draw.choice([0.002, 0.03])),
            unavailable=draw.choice([0.0, 0.05, 0.2]),
            lost_answer=draw.choice([0.0, 0.05, 0.2]),
            slow=draw.choice([0.0, 0.02]),
        )
        self.world = World(random.Random(draw.random()), fail=draw.choice([0.0, 0.1, 0.4]))
        self._lost_calls = draw.choice([0.0, 0.0, 0.1])
        self._collect = draw.random() < 0.6
        self._defects: list[BaseException] = []
        # Two routers, which learn of changes at different times.
        self.gateways = [
            ShardedRunsGateway(call=self.call, shards=len(self.shards), ids=self._ids, now=self._clock.now)
            for _ in range(2)
        ]
        self.registered = asyncio.Event()
        if self._knows:
            self.registered.set()
        supervisors = [asyncio.create_task(self._supervise(shard)) for shard in self.shards]
        breakers = asyncio.create_task(self._control(random.Random(draw.random())))
        clients = [
            Client(self, number, registers=number == 0 and not self._knows) for number in range(draw.randint(1, 4))
        ]
        playing = [asyncio.create_task(client.play()) for client in clients]

        def give_up(_: object) -> None:
            for task in playing:
                task.cancel()

        for supervisor in supervisors:
            supervisor.add_done_callback(give_up)
        changing = asyncio.create_task(self._change_shards(random.Random(draw.random()), supervisors, give_up))
        done, stuck = await asyncio.wait(playing, timeout=4000, return_when=asyncio.FIRST_EXCEPTION)
        await changing
        for task in [task for task in supervisors if task.done()] + list(done):
            task.result()
        assert not stuck, f"{len(stuck)} clients still wait for their runs after an hour: {self._states()}"
        await clients[0].list_all()
        await clients[0].check_messages()
        await self._end([*supervisors, breakers])

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Everything stops; what the bucket holds then is judged."""
        for task in tasks:
            task.cancel()
        assert not self._defects, self._defects[0]
        assert not self.world.wrong, self.world.wrong[0]
        self._faults.enabled = False
        for shard in self.shards:
            shard.process.crash()
        self.report = await verify_bucket(MemoryBucket(self.objects), acknowledged=self.acknowledged.values())
        assert self.report.ok, self.report.violations[0]
        self.counts["starts"] = self.world.starts
        self.counts["runs"] = len(self.acknowledged)
        self.counts["shards"] = len(self.shards)

    def _states(self) -> str:
        found = {}
        for shard in self.shards:
            engine = shard.store.kernel.engine if shard.store is not None else None
            found.update({run: engine.view(run) for run in engine.run_ids()} if engine is not None else {})
        return str({run: view for run, view in found.items() if view["state"] in ("PENDING", "RUNNING")})

    def new_id(self) -> str:
        """A ULID, for callers that choose the ids of their runs."""
        return self._ids.ulid()

    # ---- owners ----

    async def _supervise(self, shard: Shard) -> None:
        """Ray's part: start an owner, and another one when it is dead, or is believed to be."""
        draw = random.Random(self._draw.random())
        for number in range(draw.randint(2, 5)):
            fate = draw.random()
            process = Process(
                f"owner-{shard.number}-{number}",
                crash_at=draw.randint(1, 700) if fate < 0.55 else None,
                freeze_at=draw.randint(1, 700) if 0.55 <= fate < 0.85 else None,
                freeze_s=draw.choice([0.1, 5.0, 60.0]),
            )
            if number == 0 and self.crash_first_at is not None:
                process.crash_at, process.freeze_at = self.crash_first_at, None
            self.first = self.first or process
            await self._own(shard, process, draw)
            await self._gone(process, draw)
        self._faults.unavailable = self._faults.lost_answer = self._faults.slow = self._lost_calls = 0.0
        self.world.calm = True
        calm = 0
        while True:
            calm += 1
            process = Process(f"calm-{shard.number}-{calm}")
            await self._own(shard, process, draw)
            await self._gone(process, None)

    async def _change_shards(
        self, draw: random.Random, supervisors: list[asyncio.Task[None]], give_up: Callable[[object], None]
    ) -> None:
        """Now and then `headrace up` with another number of shards: the owners learn of it one after another."""
        for count in self._changes:
            await asyncio.sleep(draw.choice([0.2, 3.0, 20.0]))
            if count == self.layouts.shards:
                continue
            before = len(self.shards)
            self.layouts = Layouts.of([*self.layouts.known, Layout(shards=count, since=self._clock.now())])
            self.shards += [Shard(number) for number in range(before, count)]
            order = list(self.shards)
            draw.shuffle(order)
            for shard in order:
                await asyncio.sleep(draw.choice([0.0, 0.3, 3.0]))
                if shard.number < before:
                    shard.process.crash()
                    # One that is just starting must learn of it, too.
                    self.world.newest[shard.number].crash()
                else:
                    supervisors.append(asyncio.create_task(self._supervise(shard)))
                    supervisors[-1].add_done_callback(give_up)
            self.counts["layouts"] += 1

    async def _own(self, shard: Shard, process: Process, draw: random.Random) -> None:
        self.world.newest[shard.number] = process
        bucket = Recorder(self.objects, self._faults, network=Context(), world=self.world)
        store = RunStore(
            shard=shard.number,
            bucket=bucket,
            executor=WorldExecutor(self.world, process, bucket),
            clock=self._clock,
            ids=self._ids,
            random=random.Random(draw.random()).random,
            sender=WorldSender(self.world),
            signer=WebhookSigner(secret=None),
            webhook_policy=OutboundPolicy(open_world=True),
            settings=StoreSettings(
                snapshot_every=draw.choice([10, 40, 2000]),
                archive_batch=3,
                archive_after_s=draw.choice([2.0, 60.0]),
                watch_owner_s=draw.choice([0.5, 5.0]),
                durable_timeout_s=5.0,
            ),
            layouts=self.layouts,
            engine_limits=EngineLimits(max_parallel_steps=draw.choice([2, 256]), queues={NARROW: 1}),
            log_options=LogOptions(parallel_reads=4, collect=self._collect, pending_bytes=1 << 40),
            on_fatal=lambda error: self._fatal(process, error),
        )
        starting = process.spawn(store.start())
        while process.alive and not starting.done():
            await asyncio.wait([starting], timeout=1.0)
            if process.frozen:
                break
        if starting.done() and (error := starting.exception()) is not None:
            if not (isinstance(error, HeadraceError) and error.retryable):
                self._defects.append(error)
            process.crash()
            return
        shard.store, shard.process = store, process

    def _fatal(self, process: Process, error: BaseException) -> None:
        """The actor ends its process when its store may not go on."""
        if getattr(error, "code", "") not in ("fenced", "storage_unavailable"):
            self._defects.append(error)
        self.counts[f"ended {getattr(error, 'code', type(error).__name__)}"] += 1
        self._loop.call_soon(process.crash, context=Context())

    async def _gone(self, process: Process, draw: random.Random | None) -> None:
        """Until the process is dead or frozen and that was noticed, or patience (which a calm world has) ends."""
        ended = asyncio.Event()
        process.on_end = ended.set
        if process.alive and not process.frozen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1e9 if draw is None else draw.choice([1.0, 5.0, 30.0])):
                    await ended.wait()
        self.counts["crashed"] += not process.alive
        self.counts["frozen"] += process.frozen
        await asyncio.sleep(0.0 if draw is None else draw.choice([0.0, 0.5]))

    async def _control(self, draw: random.Random) -> None:
        """The control plane's part: what it says of the model's breaker; in the end that it is closed."""
        while not self.world.calm:
            await asyncio.sleep(draw.choice([0.2, 2.0, 10.0]))
            state = draw.choice(["open", "half_open", "closed"])
            await self._say(state)
            self.counts[f"breaker {state}"] += 1
        while True:  # it repeats itself, as it does to every owner that follows its table
            await self._say("closed")
            await asyncio.sleep(20.0)

    async def _say(self, state: str) -> None:
        for shard in self.shards:
            store = shard.store
            if store is None or not shard.process.alive or shard.process.frozen:
                continue

            async def tell(store: RunStore = store) -> None:
                with contextlib.suppress(HeadraceError):
                    store.set_breaker(f"model:{MODEL}", state)

            await asyncio.wait([shard.process.spawn(tell())], timeout=1.0)

    # ---- calls ----

    async def call(self, shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        """Ask whoever is believed to own the shard. Raises `Unavailable` when no answer comes, or it was lost."""
        asked = self.shards[shard]
        store, process = asked.store, asked.process
        if store is None or not process.alive:
            await asyncio.sleep(0.3)
            raise Unavailable("nobody is there")
        task = process.spawn(getattr(store, "list_runs" if method == "list" else method)(*args))
        await asyncio.wait([task], timeout=min(timeout_s, 30.0 if self.world.calm else 8.0))
        if not task.done() or not process.alive or self._draw.random() < self._lost_calls:
            raise Unavailable("no answer")
        return task.result()


@functools.cache
def _registered(shards: int, group: tuple[str, ...]) -> dict[str, bytes]:
    """A bucket in which a first owner of each shard has registered the workflows."""
    objects: dict[str, bytes] = {}

    async def register(loop: SimLoop) -> None:
        clock = LoopClock(loop)
        for shard in range(shards):
            store = RunStore(
                shard=shard,
                bucket=MemoryBucket(objects),
                executor=WorldExecutor(World(random.Random(0), fail=0.0), Process("none"), MemoryBucket(objects)),
                clock=clock,
                ids=SeededIds(clock, random.Random(shard)),
                random=random.Random(0).random,
                sender=WorldSender(World(random.Random(0), fail=0.0)),
                signer=WebhookSigner(secret=None),
                webhook_policy=OutboundPolicy(open_world=True),
            )
            await store.start()
            for name in group:
                await store.register({"workflow": {"name": name, **WORKFLOWS[name]}})
            await store.close()

    simulate(register)
    return objects
