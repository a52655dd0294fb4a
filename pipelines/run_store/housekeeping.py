"""What a run store does on the side: finished runs to the bucket, snapshots, webhooks. Nothing waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson

from cluster.errors import HeadraceError, StorageError
from pipelines.engine import Decision
from pipelines.run_store.archive import ArchivedRun
from pipelines.run_store.kernel import Kernel
from pipelines.run_store.outbox import Attempted, Delivery
from pipelines.run_store.records import Archived, WebhookAttempted
from pipelines.run_store.webhooks import HttpSender, SendResult, WebhookSigner

__all__ = ["Archiver", "Reporter", "WebhookPump"]

_log = logging.getLogger(__name__)

RETRY_S = 5.0
CHUNK = 64
ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED"})


class Archiver:
    """Moves finished runs out of memory and takes snapshots, so that recovery reads little."""

    def __init__(self, *, kernel: Kernel) -> None:
        self._kernel = kernel
        self._archiving = asyncio.Lock()
        self._trouble: str | None = None

    async def run(self) -> None:
        """Until cancelled. A bucket that does not answer delays it, no more."""
        kernel = self._kernel
        await self._quietly(kernel.memory.archive.collect_orphans())
        while True:
            kernel.changed.clear()
            if self._archive_due():
                await self._quietly(self.archive())
            if self._snapshot_due():
                await self._quietly(self.snapshot())
            await self._pause()

    async def archive(self) -> int:
        """Move all finished runs to the bucket now; returns how many."""
        async with self._archiving:  # two at once would write the same runs twice
            return await self._archive()

    async def _archive(self) -> int:
        kernel = self._kernel
        engine = kernel.engine
        chosen = []
        for run_id in list(kernel.finished):
            if run_id not in engine or engine.run_state(run_id) not in ENDED:
                del kernel.finished[run_id]
            elif engine.wanted(run_id) or run_id in kernel.pinned:
                # Looked at again later.
                del kernel.finished[run_id]
                kernel.finished[run_id] = kernel.clock.monotonic()
            else:
                chosen.append(run_id)
        if not chosen:
            return 0
        await kernel.wait_all(timeout_s=kernel.settings.durable_timeout_s)
        runs: list[ArchivedRun] = []
        ends: dict[str, float | None] = {}
        for start in range(0, len(chosen), CHUNK):
            for run_id in chosen[start : start + CHUNK]:
                if run_id in engine and engine.run_state(run_id) in ENDED:
                    summary = engine.summary(run_id)
                    ends[run_id] = summary["finished_at"]
                    runs.append(ArchivedRun(summary=summary, record=orjson.dumps(self.record(run_id))))
            await asyncio.sleep(0)
        segments = await kernel.memory.archive.write(runs)
        kernel.commit(Decision(), [Archived(segments=tuple(segments))])
        # In small portions, since submits wait meanwhile. A crash in between leaves runs in memory that are archived
        # too: memory wins, and they are archived again. So it is with a run that was resumed in the meantime.
        evicted = 0
        waiting = list(ends.items())
        for start in range(0, len(waiting), CHUNK):
            events = []
            for run_id, finished_at in waiting[start : start + CHUNK]:
                if run_id not in engine:
                    kernel.finished.pop(run_id, None)
                elif engine.summary(run_id)["finished_at"] == finished_at and not (
                    engine.wanted(run_id) or run_id in kernel.pinned
                ):
                    events += engine.evict(run_id).events
                    kernel.finished.pop(run_id, None)
            kernel.commit(Decision(events=events))
            evicted += len(events)
            await asyncio.sleep(0)
        return evicted

    def record(self, run_id: str) -> dict[str, Any]:
        """All that is known of a run, as the archive keeps it and `Engine.restore` takes it back."""
        kernel = self._kernel
        record = kernel.engine.record(run_id)
        entry = kernel.memory.entries.get(run_id)
        if entry is not None:
            record["history"] = entry.history.to_state()
        return record

    async def snapshot(self) -> None:
        """Archive what is finished, then store the state."""
        kernel = self._kernel
        await self.archive()
        cut = kernel.cut()
        position = kernel.log.assigned
        kernel.records_since_snapshot = 0
        await kernel.log.snapshot(await cut.body(), position=position)

    def _archive_due(self) -> bool:
        kernel = self._kernel
        if len(kernel.finished) >= kernel.settings.archive_batch:
            return True
        oldest = next(iter(kernel.finished.values()), None)
        return oldest is not None and kernel.clock.monotonic() - oldest >= kernel.settings.archive_after_s

    def _snapshot_due(self) -> bool:
        kernel = self._kernel
        return (
            kernel.log.segments_since_snapshot >= kernel.settings.snapshot_every
            or kernel.records_since_snapshot >= max(kernel.settings.snapshot_records, 4 * len(kernel.engine))
        )

    async def _pause(self) -> None:
        kernel = self._kernel
        try:
            async with asyncio.timeout(max(0.05, min(kernel.settings.archive_after_s / 4, 5.0))):
                await kernel.changed.wait()
        except TimeoutError:
            return
        # Under load something becomes durable all the time; once in a while is often enough to look.
        await asyncio.sleep(0.05)

    async def _quietly(self, work: Any) -> None:
        try:
            await work
            self._trouble = None
        except StorageError as error:
            if error.message != self._trouble:  # told once, not every few seconds
                self._trouble = error.message
                _log.warning(
                    "shard %d: finished runs stay in memory until the bucket takes them: %s",
                    self._kernel.shard,
                    error.message,
                )
            await asyncio.sleep(RETRY_S)
        except HeadraceError:
            if self._kernel.failed is None:
                raise


class Reporter:
    """Hands counts over to the metrics every few seconds. While there are very many runs (`runs_per_beat`) they are not
    counted each time, but what was counted last is told again, since a gauge that is not set anew is forgotten."""

    def __init__(self, *, kernel: Kernel, every_s: float = 5.0, runs_per_beat: int = 20_000) -> None:
        self._kernel = kernel
        self._every_s = every_s
        self._runs_per_beat = runs_per_beat
        self._rest = 0
        self._active: dict[str, int] = {}
        self._waiting: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            self.beat()

    def beat(self) -> None:
        """Count, unless it is too early for it, and report."""
        self._rest -= 1
        if self._rest < 0:
            self._count()
            self._rest = len(self._kernel.memory.entries) // self._runs_per_beat
        self._kernel.metrics.gauges(self._active, self._waiting)

    def _count(self) -> None:
        kernel = self._kernel
        self._active = dict(
            Counter(entry.workflow for entry in kernel.memory.entries.values() if entry.id not in kernel.finished)
        )
        gauges = kernel.engine.gauges()
        self._waiting = {
            "queue": sum(gauges["waiting"].values()),
            "lock": gauges["locked"],
            "parked": sum(gauges["parked"].values()),
        }


class WebhookPump:
    """Sends what the outbox says is due, some at a time, and logs how each try ended."""

    def __init__(self, *, kernel: Kernel, sender: HttpSender, signer: WebhookSigner) -> None:
        self._kernel = kernel
        self._sender = sender
        self._signer = signer
        self._flying: set[asyncio.Task[None]] = set()
        self._wake = kernel.outbox_changed

    async def run(self) -> None:
        """Until cancelled."""
        kernel = self._kernel
        try:
            while True:
                self._wake.clear()
                room = kernel.settings.webhook_parallel - len(self._flying)
                due = kernel.memory.outbox.due(kernel.clock.now(), limit=room) if room > 0 else []
                if due:
                    await self._committed()
                    self._start(due)
                else:
                    await self._pause()
        finally:
            for task in self._flying:
                task.cancel()

    async def _committed(self) -> None:
        """The end that a message tells of must be durable before anybody is told."""
        while True:
            try:
                await self._kernel.wait_all(timeout_s=self._kernel.settings.durable_timeout_s)
            except StorageError:
                continue
            return

    def _start(self, due: Iterable[Delivery]) -> None:
        for delivery in due:
            task = asyncio.create_task(self._send(delivery))
            self._flying.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._kernel.fatal(error)

    async def _send(self, delivery: Delivery) -> None:
        kernel = self._kernel
        headers, body = self._signer.message(delivery, now=kernel.clock.now())
        result: SendResult = await self._sender.post(delivery.url, headers, body, now=kernel.clock.now())
        if kernel.failed is not None:
            return
        fact = Attempted(
            id=delivery.id,
            at=kernel.clock.now(),
            status=result.status,
            error=result.error,
            retry_after_s=result.retry_after_s,
            jitter=(kernel.random() - 0.5) * 0.4,
        )
        delivered = result.status is not None and 200 <= result.status < 300
        kernel.metrics.webhook_tried("delivered" if delivered else str(result.status or "no_answer"))
        kernel.commit(Decision(), [WebhookAttempted(attempted=fact)], linger_s=kernel.settings.step_linger_s)

    async def _pause(self) -> None:
        kernel = self._kernel
        next_due = kernel.memory.outbox.next_due()
        wait_s = 60.0 if next_due is None else min(60.0, max(0.005, next_due - kernel.clock.now()))
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return
