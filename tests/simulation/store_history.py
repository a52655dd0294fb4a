"""One simulated history of a whole run store: clients, steps, owners that crash or freeze, a bucket that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import HeadraceError
from cluster.log import LogOptions
from cluster.simulation import LoopClock, Process, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket
from pipelines.engine.core import EngineLimits
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import SendResult, WebhookSigner
from pipelines.verify.reading import verify_bucket
from pipelines.verify.report import Report
from tests.simulation.log_history import inline

ENDED = ("SUCCESS", "FAILED", "CANCELLED")


def script(step_id: str, **more: Any) -> dict[str, Any]:
    """A python_script step."""
    return {"id": step_id, "type": "python_script", **more}


RETRY = {"max_attempts": 3, "initial_interval": 0.5, "jitter": 0.2}
WORKFLOWS: dict[str, dict[str, Any]] = {
    "chain": {
        "steps": [script("a"), script("b", input="{{steps.a.output}}", retry=RETRY), script("c", depends_on=["b"])]
    },
    "fan": {
        "steps": [
            script("list"),
            script("each", depends_on=["list"], foreach={"items": [1, 2, 3, 4, 5], "max_parallel": 2}, retry=RETRY),
            script("join", depends_on=["each"], run_if="all_done"),
        ]
    },
    "mixed": {
        "steps": [
            script("a", on_error="continue", retry=RETRY, timeout=5),
            script("rounds", depends_on=["a"], loop={"max_iterations": 3}, retry=RETRY),
            script("sorry", depends_on=["rounds"], run_if="any_failed"),
            script("locked", depends_on=["a"], concurrency={"key": "one", "limit": 1}, delay=0.2),
        ]
    },
    "parent": {
        "steps": [{"id": "child", "type": "workflow", "workflow": "chain"}, script("end", depends_on=["child"])]
    },
}


@dataclass
class World:
    """What happened outside the run store, whoever owned it."""

    draw: random.Random
    loop: SimLoop
    starts: list[tuple[str, Attempt]] = field(default_factory=list)
    newest: Process | None = None
    fences: set[int] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    """Runs whose cancel was acknowledged."""
    messages: Counter[str] = field(default_factory=Counter)
    """Webhook deliveries by message id."""
    late: list[str] = field(default_factory=list)


@dataclass
class WorldExecutor:
    """Steps take time, fail, hang and are done by workers that outlive the owner."""

    world: World
    process: Process
    fail: float

    async def run(self, attempt: Attempt) -> Outcome:
        """A few milliseconds to a minute; each attempt has its own output, so that a second result would be seen."""
        world, draw = self.world, self.world.draw
        world.starts.append((self.process.name, attempt))
        if attempt.fence in world.fences:
            world.late.append(f"fence {attempt.fence} was given twice: a worker cannot tell which attempt is newer")
        world.fences.add(attempt.fence)
        # A zombie may act on what it was told before it was replaced: its results are refused, its starts cannot be.
        if attempt.run_id in world.cancelled and self.process is world.newest:
            world.late.append(f"{attempt.step_id} of {attempt.run_id} was started after its cancel was acknowledged")
        await asyncio.sleep(60.0 if draw.random() < 0.02 else draw.uniform(0.001, 0.3))
        if draw.random() < self.fail:
            return Outcome(status="failed", error={"code": "step_error", "message": "no", "retryable": True})
        return Outcome(status="success", output={"fence": attempt.fence})

    async def close(self) -> None:
        return None


@dataclass
class WorldSender:
    """Receivers that mostly answer."""

    world: World

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult:
        await asyncio.sleep(0.01)
        self.world.messages[headers["webhook-id"]] += 1
        return SendResult(status=200 if self.world.draw.random() < 0.7 else 503)

    async def close(self) -> None:
        return None


@dataclass
class StoreHistory:
    """Play it with `run`; an AssertionError is a found defect."""

    seed: int
    crash_first_at: int | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Idempotency key to the run id that was answered."""
    seen: dict[tuple[str, str], Any] = field(default_factory=dict)
    """(run id, step id) to the committed output that a client was shown."""
    first: Process | None = None
    counts: Counter[str] = field(default_factory=Counter)
    report: Report | None = None

    def run(self) -> StoreHistory:
        """Play it to the end."""
        simulate(self._main)
        return self

    async def _main(self, loop: SimLoop) -> None:
        draw = self._draw = random.Random(self.seed)
        self._loop, self._clock = loop, LoopClock(loop)
        self._ids = SeededIds(self._clock, random.Random(draw.random()))
        self._world = World(random.Random(draw.random()), loop)
        self._faults = Faults(
            random.Random(draw.random()),
            latency_s=(0.001, draw.choice([0.002, 0.03])),
            unavailable=draw.choice([0.0, 0.05, 0.2]),
            lost_answer=draw.choice([0.0, 0.05, 0.2]),
            slow=draw.choice([0.0, 0.02]),
        )
        self._fail = draw.choice([0.0, 0.1, 0.4])
        self._collect = draw.random() < 0.6
        self._store: RunStore | None = None
        self._process = Process("none")
        self._calm = False
        self._defects: list[BaseException] = []
        supervisor = asyncio.create_task(self._supervise())
        clients = [asyncio.create_task(self._client(number)) for number in range(draw.randint(1, 4))]
        supervisor.add_done_callback(lambda _: [client.cancel() for client in clients])
        done, stuck = await asyncio.wait(clients, timeout=4000, return_when=asyncio.FIRST_EXCEPTION)
        if supervisor.done():
            supervisor.result()
        for task in done:
            task.result()
        assert not stuck, f"{len(stuck)} clients still wait for their runs after an hour: {await self._states()}"
        supervisor.cancel()
        assert not self._defects, self._defects[0]
        assert not self._world.late, self._world.late[0]
        self._process.crash()
        self._faults.enabled = False
        self.report = await verify_bucket(MemoryBucket(self.objects), acknowledged=self.acknowledged.values())
        assert self.report.ok, self.report.violations[0]
        self.counts["starts"] = len(self._world.starts)
        self.counts["runs"] = len(self.acknowledged)

    async def _states(self) -> str:
        if self._store is None:
            return "no owner"
        return str({run: self._store.kernel.engine.view(run)["state"] for run in self._store.kernel.engine.run_ids()})

    # ---- owners ----

    async def _supervise(self) -> None:
        """Ray's part: start an owner, and another one when it is dead, or is believed to be."""
        for number in range(self._draw.randint(2, 5)):
            fate = self._draw.random()
            crash = self._draw.randint(1, 700) if fate < 0.55 else None
            freeze = self._draw.randint(1, 700) if 0.55 <= fate < 0.85 else None
            if number == 0 and self.crash_first_at is not None:
                crash, freeze = self.crash_first_at, None
            process = Process(
                f"owner-{number}", crash_at=crash, freeze_at=freeze, freeze_s=self._draw.choice([0.1, 5.0, 60.0])
            )
            self.first = self.first or process
            await self._own(process)
            await self._gone(process, self._draw.choice([1.0, 5.0, 30.0]))
        self._faults.unavailable = self._faults.lost_answer = self._faults.slow = 0.0
        self._calm = True
        while True:
            process = Process("calm")
            await self._own(process)
            await self._gone(process, 1e9)

    async def _own(self, process: Process) -> None:
        self._world.newest = process
        bucket = MemoryBucket(self.objects, self._faults, network=Context())
        store = RunStore(
            shard=0,
            bucket=bucket,
            executor=WorldExecutor(self._world, process, self._fail),
            clock=self._clock,
            ids=self._ids,
            random=random.Random(self._draw.random()).random,
            sender=WorldSender(self._world),
            signer=WebhookSigner(secret=None),
            webhook_policy=OutboundPolicy(open_world=True),
            settings=StoreSettings(
                snapshot_every=self._draw.choice([10, 40, 2000]),
                archive_batch=3,
                archive_after_s=self._draw.choice([0.5, 60.0]),
                watch_owner_s=0.5,
                durable_timeout_s=5.0,
            ),
            engine_limits=EngineLimits(max_parallel_steps=self._draw.choice([2, 256])),
            log_options=LogOptions(offload=inline, parallel_reads=4, collect=self._collect, pending_bytes=1 << 40),
            on_fatal=lambda error: self._fatal(process, error),
        )
        starting = process.spawn(store.start())
        while process.alive and not starting.done():
            await asyncio.wait([starting], timeout=1.0)
            if process.frozen:
                break
        if starting.done():
            error = starting.exception()
            if error is not None:
                if not (isinstance(error, HeadraceError) and error.retryable):
                    self._defects.append(error)
                process.crash()
                return
        self._store, self._process = store, process

    def _fatal(self, process: Process, error: BaseException) -> None:
        """The actor ends its process when its store may not go on."""
        if getattr(error, "code", "") not in ("fenced", "storage_unavailable"):
            self._defects.append(error)
        self.counts[f"ended {getattr(error, 'code', type(error).__name__)}"] += 1
        self._loop.call_soon(process.crash, context=Context())

    async def _gone(self, process: Process, patience_s: float) -> None:
        """Until the process is dead or frozen and that was noticed, or patience ends."""
        ended = asyncio.Event()
        process.on_end = ended.set
        if process.alive and not process.frozen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await ended.wait()
        self.counts["crashed"] += not process.alive
        self.counts["frozen"] += process.frozen
        await asyncio.sleep(self._draw.choice([0.0, 0.5]))

    # ---- clients ----

    async def _call(self, work: Callable[[RunStore], Coroutine[Any, Any, Any]], timeout_s: float = 8.0) -> Any:
        """Ask whoever is believed to own the store; None when no answer came."""
        store, process = self._store, self._process
        if store is None or not process.alive:
            await asyncio.sleep(0.3)
            return None
        task = process.spawn(work(store))
        await asyncio.wait([task], timeout=timeout_s)
        if not task.done() or not process.alive:
            return None
        if (error := task.exception()) is not None:
            if isinstance(error, HeadraceError) and (error.retryable or error.status in (404, 409)):
                await asyncio.sleep(0.3)
                return error
            raise error
        return task.result()

    async def _client(self, number: int) -> None:
        draw = random.Random(f"{self.seed}/{number}")
        request: dict[str, Any]
        for name, steps in WORKFLOWS.items() if number == 0 else ():
            request = {"workflow": {"name": name, **steps}}
            while not isinstance(await self._call(lambda s, r=request: s.register(r)), dict):
                pass
        for turn in range(draw.randint(1, 4)):
            key = f"{number}/{turn}"
            request = {
                "workflow": draw.choice(list(WORKFLOWS)),
                "input": {"n": turn},
                "idempotency_key": key,
                "webhook": {"url": "http://hooks.test/x"} if draw.random() < 0.5 else None,
            }
            answer: Any = None
            while not isinstance(answer, dict):
                answer = await self._call(lambda s, r=request: s.submit(r))
            run_id = str(answer["id"])
            assert self.acknowledged.setdefault(key, run_id) == run_id
            if draw.random() < 0.3:
                again = await self._call(lambda s, r=request: s.submit(r))
                assert not isinstance(again, dict) or again["id"] == run_id, "one key, two runs"
            if draw.random() < 0.25:
                await asyncio.sleep(draw.uniform(0.0, 1.0))
                await self._cancel(run_id)
                if draw.random() < 0.5:
                    self._world.cancelled.discard(run_id)
                    await self._call(lambda s, r=run_id: s.resume(r, {}))
            if draw.random() < 0.7:
                await self._follow(run_id)
        for run_id in [run for key, run in self.acknowledged.items() if key.startswith(f"{number}/")]:
            view = await self._follow(run_id)
            if view["state"] == "FAILED" and draw.random() < 0.5:
                await self._call(lambda s, r=run_id: s.resume(r, {}))
                await self._follow(run_id)

    async def _cancel(self, run_id: str) -> None:
        answer = await self._call(lambda s: s.cancel(run_id))
        if isinstance(answer, dict) and answer["state"] == "CANCELLED":
            self._world.cancelled.add(run_id)
            self.counts["cancelled"] += 1

    async def _follow(self, run_id: str) -> dict[str, Any]:
        """Look until the run has ended; what was once shown as committed must not change while it is not resumed."""
        while True:
            view = await self._call(lambda s: s.get(run_id))
            if isinstance(view, HeadraceError):
                assert view.code != "not_found", f"acknowledged run {run_id} is not found"
            if isinstance(view, dict):
                for step in view["steps"]:
                    if step["state"] == "SUCCESS":
                        before = self.seen.setdefault((run_id, step["id"]), step.get("output"))
                        assert before == step.get("output"), f"the result of {step['id']} of {run_id} changed"
                if view["state"] in ENDED:
                    return dict(view)
            await asyncio.sleep(0.5 if not self._calm else 5.0)
