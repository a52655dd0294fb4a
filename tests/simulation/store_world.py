"""What stands around simulated run stores: workers, receivers of messages, and a bucket whose log is read as it grows.

The world knows which facts are durable (`Recorder`), so it can tell at once when something is begun, sent or
acknowledged that is not. What it finds wrong stands in `wrong`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from cluster.errors import StorageUnavailable
from cluster.log.codec import decode_segment
from cluster.names import shard_of_run
from cluster.simulation import Process
from cluster.storage import BlobStore, Bucket
from cluster.storage.testing import MemoryBucket
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.webhooks import SendResult
from tests.simulation.store_workflows import NARROW, PLAIN

__all__ = ["Recorder", "World", "WorldExecutor", "WorldSender"]

ENDS = {"RunSucceeded": "SUCCESS", "RunFailed": "FAILED", "RunCancelled": "CANCELLED"}


@dataclass
class World:
    """What happened outside the run stores, whoever owned them."""

    draw: random.Random
    fail: float
    """Share of attempts that fail."""
    starts: int = 0
    newest: dict[int, Process] = field(default_factory=dict)
    """By shard. An older owner may act on what it was told before it was replaced: its results are refused."""
    calm: bool = False
    fences: set[tuple[int, int]] = field(default_factory=set)
    """(shard, fence) of attempts that were begun."""
    cancelled: set[str] = field(default_factory=set)
    """Runs whose cancel was acknowledged, and that were not resumed since."""
    done: set[tuple[str, str]] = field(default_factory=set)
    """(run, step) that a caller was shown as committed, and no fix has invalidated since."""
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(process, lock or queue) to the number of attempts that hold it now."""
    recorded: set[tuple[str, ...]] = field(default_factory=set)
    """Durable facts: (name, run), (name, run, step), ("fence", shard, fence)."""
    delivered: set[str] = field(default_factory=set)
    """Ids of messages that their receivers took."""
    told: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Run to the (message id, state) that receivers were told."""
    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, message: str) -> None:
        """Note a defect."""
        if not holds:
            self.wrong.append(message)

    def is_recorded(self, *fact: str) -> bool:
        return fact in self.recorded


@dataclass
class Recorder(MemoryBucket):
    """A bucket that tells the world which facts have become durable in it."""

    world: World | None = None

    def _create(self, key: str, data: bytes) -> None:
        super()._create(key, data)
        if "/wal/" not in key or self.world is None:
            return
        recorded, shard = self.world.recorded, key.split("/")[1]
        for record in decode_segment(data, key=key).records:
            fact = orjson.loads(record)
            name, run_id = fact.get("e"), fact.get("run_id")
            if name is None or run_id is None:
                continue
            recorded.add((name, run_id))
            if "step_id" in fact:
                recorded.add((name, run_id, fact["step_id"]))
            if name == "AttemptStarted":
                recorded.add(("fence", shard, str(fact["fence"])))


@dataclass
class WorldExecutor:
    """Steps take time, fail, hang, and are done by workers that outlive the owner."""

    world: World
    process: Process
    blobs: Bucket

    async def run(self, attempt: Attempt) -> Outcome:
        """A few milliseconds to a minute; each attempt has its own output, so that a second result would be seen."""
        world, draw = self.world, self.world.draw
        self._check(attempt)
        holds = [(self.process.name, what) for what in _limits(attempt)]
        for hold in holds:
            world.held[hold] += 1
            world.check(world.held[hold] == 1, f"two attempts hold {hold[1]} of {hold[0]} at once")
        try:
            await asyncio.sleep(60.0 if draw.random() < 0.02 else draw.uniform(0.001, 0.3))
        finally:
            world.held.subtract(holds)
        fate = draw.random()
        if fate < world.fail:
            code = draw.choice(["step_error", "step_error", "worker_died", "overloaded", "breaker_open"])
            error: dict[str, Any] = {"code": code, "message": "no", "retryable": True}
            if code == "breaker_open" and attempt.model is not None:
                error["details"] = {"breaker": f"model:{attempt.model}"}
            return Outcome(status="failed", error=error)
        output: Any = {"fence": attempt.fence}
        if attempt.step_id == "big":
            try:
                output = (await BlobStore(self.blobs).put_json(output, spilled=True)).to_json()
            except StorageUnavailable as error:
                return Outcome(status="failed", error=error.to_dict())
        return Outcome(status="success", output=output)

    def _check(self, attempt: Attempt) -> None:
        world = self.world
        shard = shard_of_run(attempt.run_id)
        assert shard is not None
        who = f"{attempt.step_id} of {attempt.run_id}"
        world.starts += 1
        world.check((shard, attempt.fence) not in world.fences, f"fence {attempt.fence} was given twice, to {who} too")
        world.fences.add((shard, attempt.fence))
        recorded = world.is_recorded("fence", str(shard), str(attempt.fence))
        world.check(recorded, f"{who} was begun before its start was durable")
        if self.process is not world.newest[shard]:
            return
        world.check(attempt.run_id not in world.cancelled, f"{who} was begun after its cancel was acknowledged")
        done = (attempt.run_id, attempt.step_id) in world.done
        world.check(not done, f"{who} had its result shown, and was begun again")

    async def close(self) -> None:
        return None


def _limits(attempt: Attempt) -> list[str]:
    """The locks and narrow queues that an attempt holds, by the definition of its workflow."""
    if attempt.step_id == "locked":
        return ["lock"]
    return [NARROW] if attempt.step_id in ("quick", "after") else []


@dataclass
class WorldSender:
    """Receivers that mostly answer."""

    world: World

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult:
        await asyncio.sleep(0.01)
        world = self.world
        message, data = headers["webhook-id"], orjson.loads(body)["data"]
        world.told.setdefault(data["id"], set()).add((message, data["state"]))
        ends = [fact for fact, state in ENDS.items() if state == data["state"]]
        durable = bool(ends) and world.is_recorded(ends[0], data["id"])
        world.check(durable, f"a receiver was told that {data['id']} is {data['state']} before that was durable")
        if world.calm or world.draw.random() < 0.7:
            world.delivered.add(message)
            return SendResult(status=200)
        return SendResult(status=503)

    async def close(self) -> None:
        return None


def note_shown(world: World, view: Mapping[str, Any]) -> None:
    """A caller was shown this run: all of it must be durable, and what is done stays done."""
    run_id, workflow = view["id"], view["workflow"]
    world.check(world.is_recorded("RunSubmitted", run_id), f"{run_id} was shown before its submit was durable")
    for fact, state in ENDS.items():
        if view["state"] == state:
            world.check(world.is_recorded(fact, run_id), f"{run_id} was shown as {state} before that was durable")
    for step in view["steps"]:
        if step["state"] == "SUCCESS":
            durable = world.is_recorded("StepSucceeded", run_id, step["id"])
            world.check(durable, f"{step['id']} of {run_id} was shown as done before that was durable")
            if (workflow, step["id"]) in PLAIN:
                world.done.add((run_id, step["id"]))
