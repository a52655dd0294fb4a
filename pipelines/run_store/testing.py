"""A run store for tests: in memory, with fakes for everything outside, and a second life over the same bucket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.clock import Clock, IdSource, SystemClock, SystemIds
from cluster.layout import Layouts
from cluster.storage import Bucket
from cluster.storage.testing import MemoryBucket
from pipelines.engine.core import EngineLimits
from pipelines.executor.port import Executor
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import SendResult, WebhookSigner

__all__ = ["FakeSender", "SaidHost", "StoreFactory", "until", "wait_ended"]


@dataclass
class FakeSender:
    """`HttpSender` that keeps what was posted and answers from a list (the last answer again and again)."""

    answers: list[SendResult] = field(default_factory=lambda: [SendResult(status=204)])
    posted: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult:
        self.posted.append((url, dict(headers), body))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def close(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class SaidHost:
    """`SaidOfHost` as a test says it."""

    state: str = "open"
    open_until: float | None = None
    since: int = 1
    probes: int = 1


@dataclass
class StoreFactory:
    """Makes run stores over one bucket: each is a new process that knows only what the bucket holds."""

    bucket: Bucket = field(default_factory=MemoryBucket)
    shard: int = 0
    clock: Clock = field(default_factory=SystemClock)
    ids: IdSource = field(default_factory=SystemIds)
    sender: FakeSender = field(default_factory=FakeSender)
    settings: StoreSettings = field(default_factory=StoreSettings)
    layouts: Layouts | None = None
    engine_limits: EngineLimits = field(default_factory=EngineLimits)
    secret: str | None = None
    policy: OutboundPolicy = field(default_factory=lambda: OutboundPolicy(open_world=True))
    fatal: list[BaseException] = field(default_factory=list)

    def make(self, executor: Executor | None = None) -> RunStore:
        """A run store that has not been started."""
        return RunStore(
            shard=self.shard,
            bucket=self.bucket,
            executor=executor or FakeExecutor(),
            clock=self.clock,
            ids=self.ids,
            random=random.Random(7).random,
            sender=self.sender,
            signer=WebhookSigner(secret=self.secret),
            webhook_policy=self.policy,
            settings=self.settings,
            layouts=self.layouts,
            engine_limits=self.engine_limits,
            on_fatal=self.fatal.append,
        )

    @asynccontextmanager
    async def running(self, executor: Executor | None = None) -> AsyncIterator[RunStore]:
        """A started run store; leaving ends it as abruptly as a process can be ended without losing the loop."""
        store = self.make(executor)
        await store.start()
        try:
            yield store
        finally:
            await store.close()


async def wait_ended(store: RunStore, run_id: str) -> dict[str, Any]:
    """Follow a run's events to its end and return its view."""
    after = 0
    while True:
        page = await store.events(run_id, after, 5.0)
        if page["done"]:
            return await store.get(run_id)
        if page["events"]:
            after = page["events"][-1]["id"]


async def until(check: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Wait until something holds. Raises `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while True:
            if check():
                return
            await asyncio.sleep(0.001)
