"""Collects what `state.retention` lets go: old finished runs of this shard with their logs, then blobs nobody names.

Each shard collects its own runs and writes down which blobs it uses (`gc/marks/<shard>`). Blobs belong to all shards:
shard 0 waits for the marks of all and removes the rest, by the rules of `cluster/storage/keeping.py`. All of it is
paced, so that submits and steps do not wait for it, and may end at any instant: the next collection goes on.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import orjson

from cluster.errors import HeadraceError, ObjectNotFound, StorageError
from cluster.storage.keeping import CLAIM_S, CLAIMS, PINS, pin_of
from pipelines.engine import Decision
from pipelines.executor.log_keys import hour_prefix, parse_log_key
from pipelines.run_store.archive import HOUR_MS, ArchiveSegment
from pipelines.run_store.garbage import Marks, is_old, may_be_old, references_in
from pipelines.run_store.kernel import Kernel
from pipelines.run_store.records import RunsCollected
from pipelines.run_store.runids import created_ms, order_key

__all__ = ["Collector"]

MARKS = "gc/marks/"
MAX_SHARDS = 64
_PAUSE_S = 0.01
_BATCH = 200
_CLAIM_USE_S = CLAIM_S / 6
_RUNS_AT_ONCE = 64
_MARKS_WAIT_S = 3600.0
_POLL_S = 0.5


@dataclass(kw_only=True)
class Counts:
    """What a collection found, or removed."""

    runs: int = 0
    logs: int = 0
    blobs: int = 0
    bytes: int = 0
    blobs_kept: int = 0

    def to_dict(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(kw_only=True)
class _Collection:
    """One collection as it goes."""

    id: str
    dry_run: bool
    started_at: float
    state: str = "running"
    finished_at: float | None = None
    error: str | None = None
    counts: Counts = field(default_factory=Counts)

    def view(self) -> dict[str, Any]:
        return {**vars(self), "counts": self.counts.to_dict()}


class Collector:
    """One at a time. `start` begins one by hand; `run` begins one daily, where runs are not kept for ever."""

    def __init__(self, *, kernel: Kernel) -> None:
        self._kernel = kernel
        self._last: _Collection | None = None
        self._asked = asyncio.Event()
        self._wanted: _Collection | None = None

    def view(self) -> dict[str, Any] | None:
        """The newest collection: `{id, dry_run, state, started_at, finished_at, error, counts}`."""
        return None if self._last is None else self._last.view()

    def start(self, identifier: str, *, dry_run: bool) -> dict[str, Any]:
        """Begin a collection, unless one is under way already: then that one's view."""
        if self._last is not None and self._last.state == "running":
            return self._last.view()
        self._wanted = self._last = self._new(identifier, dry_run=dry_run)
        self._asked.set()
        return self._last.view()

    async def run(self) -> None:
        """Until cancelled."""
        kernel = self._kernel
        every_s = kernel.settings.collect_every_s
        while True:
            # All shards wake at the same time of day, and shard 0 knows by the name which marks belong together.
            wait_s = every_s - kernel.clock.now() % every_s
            try:
                async with asyncio.timeout(wait_s if kernel.settings.retain_runs_s is not None else None):
                    await self._asked.wait()
            except TimeoutError:
                self._wanted = self._last = self._new(f"auto-{round(kernel.clock.now() / every_s)}", dry_run=False)
            self._asked.clear()
            if self._wanted is not None:
                collection, self._wanted = self._wanted, None
                await self._collect(collection)

    def _new(self, identifier: str, *, dry_run: bool) -> _Collection:
        return _Collection(id=identifier, dry_run=dry_run, started_at=self._kernel.clock.now())

    async def _collect(self, collection: _Collection) -> None:
        kernel = self._kernel
        try:
            gone = await self._collect_runs(collection)
            await self._write_marks(collection, gone)
            if kernel.shard == 0:
                await self._sweep(collection)
            collection.state = "done"
        except HeadraceError as error:
            if kernel.failed is not None:
                return
            collection.state, collection.error = "failed", error.message
        finally:
            collection.finished_at = kernel.clock.now()

    # ---- runs and their logs ----

    async def _collect_runs(self, collection: _Collection) -> frozenset[str]:
        """Give up objects of the archive; returns the keys of those that a dry run would."""
        kernel, keep_s = self._kernel, self._kernel.settings.retain_runs_s
        archive = kernel.memory.archive
        gone: set[str] = set()
        if keep_s is None:
            return frozenset()
        before = kernel.clock.now() - keep_s
        for segment in archive.segments:
            if not may_be_old(segment, before=before):
                continue
            rows, _ = await archive.contents(segment)
            await asyncio.sleep(_PAUSE_S)
            if not is_old(rows, before=before):
                continue
            ids = [str(row["id"]) for row in rows]
            lost = await self._without_others(segment, ids, gone)
            collection.counts.runs += len(lost)
            collection.counts.logs += await self._remove_logs(segment, lost, dry_run=collection.dry_run)
            gone.add(segment.key)
            if collection.dry_run:
                continue
            # First the fact, then the object: what a crash leaves between the two, no manifest names, and the next
            # owner removes it. The other way round it would be a missing object.
            fact = RunsCollected(keys=(segment.key,), run_ids=tuple(sorted(lost)), before=before)
            future = kernel.commit(Decision(), [fact])
            await kernel.wait(future, timeout_s=kernel.settings.durable_timeout_s)
            await kernel.bucket.delete(segment.key)
            await asyncio.sleep(_PAUSE_S)
        return frozenset(gone)

    async def _without_others(self, segment: ArchiveSegment, ids: list[str], gone: Collection[str]) -> set[str]:
        """Those of the runs that are nowhere else: one that was resumed is in memory, or in a later object. Objects
        that are `gone`, or would be, do not count."""
        kernel = self._kernel
        lost = {run_id for run_id in ids if run_id not in kernel.engine}
        for other in kernel.memory.archive.hour_of(segment):
            if other.key not in (segment.key, *gone) and other.low <= segment.high and segment.low <= other.high:
                rows, _ = await kernel.memory.archive.contents(other)
                lost -= {str(row["id"]) for row in rows}
        return lost

    async def _remove_logs(self, segment: ArchiveSegment, run_ids: set[str], *, dry_run: bool) -> int:
        kernel = self._kernel
        ulids = {order_key(run_id) for run_id in run_ids}
        hour = created_ms(segment.low) // HOUR_MS
        found = 0
        for key in await kernel.bucket.list(hour_prefix(kernel.shard, hour)):
            named = parse_log_key(key)
            if named is None or named.ulid not in ulids:
                continue
            found += 1
            if not dry_run:
                await kernel.bucket.delete(key)
                await asyncio.sleep(_PAUSE_S)
        return found

    # ---- which blobs this shard uses ----

    async def _write_marks(self, collection: _Collection, gone: frozenset[str]) -> None:
        """Everything that is in memory now or in the archive. What comes later is younger than the grace, or pinned.

        Memory first: a run that is moved to the archive meanwhile is found there.
        """
        kernel = self._kernel
        at = kernel.clock.now()
        marks = Marks()
        for digest in kernel.engine.bundles():
            marks.add(digest)
        _mark(marks, orjson.dumps(kernel.memory.outbox.to_state()))
        ids = list(kernel.memory.entries)
        for start in range(0, len(ids), _RUNS_AT_ONCE):
            for run_id in ids[start : start + _RUNS_AT_ONCE]:
                if run_id in kernel.engine:
                    _mark(marks, orjson.dumps(kernel.engine.record(run_id), option=orjson.OPT_NON_STR_KEYS))
            await asyncio.sleep(_PAUSE_S)
        for segment in kernel.memory.archive.segments:
            if segment.key not in gone:
                _, body = await kernel.memory.archive.contents(segment)
                await asyncio.to_thread(_mark, marks, body)
                await asyncio.sleep(_PAUSE_S)
        # A process that was thought dead has missed runs: what it would write is no report of this shard.
        await kernel.log.check_owner()
        packed = marks.pack()
        header = {"id": collection.id, "dry_run": collection.dry_run, "at": at, "crc": zlib.crc32(packed)}
        await kernel.bucket.put(f"{MARKS}{kernel.shard}", orjson.dumps(header) + b"\n" + packed)

    async def _all_marks(self, collection: _Collection) -> tuple[Marks, float]:
        """What any shard uses, and since when the oldest of these reports may have missed something."""
        kernel = self._kernel
        shards = set(range(kernel.settings.shards))
        for shard in range(kernel.settings.shards, MAX_SHARDS):
            # Shards of an earlier configuration: their runs are still there, and nobody can say what they use.
            if await kernel.bucket.list(f"runs/{shard}/wal/"):
                shards.add(shard)
        waited = kernel.clock.monotonic()
        marks, at = Marks(), kernel.clock.now()
        for shard in sorted(shards):
            while True:
                found = await self._marks_of(shard, collection)
                if found is not None:
                    break
                if shard >= kernel.settings.shards or kernel.clock.monotonic() - waited > _MARKS_WAIT_S:
                    raise StorageError(
                        f"shard {shard} has not said which blobs it uses, so none were collected: is it running?"
                    )
                await asyncio.sleep(_POLL_S)
            marks.update(found[0])
            at = min(at, found[1])
        return marks, at

    async def _marks_of(self, shard: int, collection: _Collection) -> tuple[Marks, float] | None:
        """A shard's marks of this collection, or of another one since it began."""
        try:
            data = await self._kernel.bucket.get(f"{MARKS}{shard}")
        except ObjectNotFound:
            return None
        head, _, packed = data.partition(b"\n")
        try:
            header = orjson.loads(head)
            if zlib.crc32(packed) != header["crc"]:
                return None
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return None  # damaged, or of another release: the shard's next report takes its place
        if header["dry_run"] and not collection.dry_run:
            return None  # without what that one would have removed
        if header["id"] != collection.id and header["at"] < collection.started_at:
            return None
        return Marks(packed), float(header["at"])

    # ---- blobs ----

    async def _sweep(self, collection: _Collection) -> None:
        kernel = self._kernel
        marks, at = await self._all_marks(collection)
        written_before = at - kernel.settings.blob_grace_s
        doomed: list[tuple[str, str, int]] = []
        for number in range(256):
            for key in await kernel.bucket.list(f"blobs/{number:02x}/"):
                sha256 = key.rsplit("/", 1)[-1]
                if len(sha256) != 64:
                    continue
                if sha256 in marks:
                    collection.counts.blobs_kept += 1
                    continue
                try:
                    old = await kernel.bucket.modified(key) < written_before
                    size = await kernel.bucket.size(key) if old else 0
                except ObjectNotFound:
                    continue
                await asyncio.sleep(_PAUSE_S)
                if not old:
                    collection.counts.blobs_kept += 1
                    continue
                doomed.append((sha256, key, size))
                if len(doomed) >= _BATCH:
                    await self._remove(collection, doomed, written_before)
                    doomed = []
        await self._remove(collection, doomed, written_before)
        if not collection.dry_run:
            await self._forget(written_before)

    async def _remove(self, collection: _Collection, doomed: list[tuple[str, str, int]], written_before: float) -> None:
        """Claim, look at the pins, remove: rule 3 of `keeping.py`."""
        kernel, counts = self._kernel, collection.counts
        if not doomed:
            return
        claim = f"{CLAIMS}{kernel.log.epoch:010d}-{kernel.ids.ulid()}"
        began = kernel.clock.monotonic()
        if not collection.dry_run:
            await kernel.bucket.put(claim, orjson.dumps([sha256 for sha256, _, _ in doomed]))
            # Its own marks were true while it was the owner; whoever is it now knows of no older blob that is not
            # marked, pinned, or about to meet the claim.
            await kernel.log.check_owner()
        pinned = {pin[0] for key in await kernel.bucket.list(PINS) if (pin := pin_of(key)) and pin[1] > written_before}
        sure = True
        for sha256, key, size in doomed:
            if sha256 in pinned:
                counts.blobs_kept += 1
                continue
            if not collection.dry_run:
                # Written anew since the list was made, by somebody who found it gone? And is the claim still good?
                try:
                    if await kernel.bucket.modified(key) >= written_before:
                        continue
                except ObjectNotFound:
                    continue
                if kernel.clock.monotonic() - began > _CLAIM_USE_S or kernel.failed is not None:
                    break
                try:
                    await kernel.bucket.delete(key, once=True)
                except StorageError:
                    sure = False  # it may still happen: the claim stays until that can no longer be
                    continue
                await asyncio.sleep(_PAUSE_S)
            counts.blobs += 1
            counts.bytes += size
        if sure and not collection.dry_run:
            await kernel.bucket.delete(claim)

    async def _forget(self, before: float) -> None:
        """Remove pins that count no longer, and claims of owners that died."""
        bucket = self._kernel.bucket
        for key in await bucket.list(PINS):
            pin = pin_of(key)
            if pin is not None and pin[1] < before:
                await bucket.delete(key)
                await asyncio.sleep(_PAUSE_S)
        for key in await bucket.list(CLAIMS):
            try:
                if await bucket.modified(key) < self._kernel.clock.now() - 2 * CLAIM_S:
                    await bucket.delete(key)
            except ObjectNotFound:
                continue


def _mark(marks: Marks, data: bytes) -> None:
    for sha256 in references_in(data):
        marks.add(sha256)
