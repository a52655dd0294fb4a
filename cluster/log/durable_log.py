"""The write-ahead log that makes an owner recoverable: claim, append in groups, snapshot, collect.

One owner writes one segment at a time, each made with create-if-absent: whoever creates `wal/<seq>` owns that number.
A new owner takes the next number for its epoch segment, so the old owner's next write finds its number taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.clock import Clock, IdSource
from cluster.errors import Fenced, Overloaded, StorageError, StorageUnavailable, TooLarge
from cluster.log.claiming import read_and_claim
from cluster.log.options import LogOptions, LogStats
from cluster.log.segment_writer import SegmentWriter, Tip
from cluster.log.snapshots import Snapshots
from cluster.storage.port import Bucket

__all__ = ["DurableLog", "LogOptions", "LogStats", "Recovered"]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a new owner finds: the newest snapshot's bytes (or None) and every record after it, in order."""

    snapshot: bytes | None
    records: list[bytes]
    epoch: int
    position: int


@dataclass(slots=True)
class _Pending:
    records: Sequence[bytes]
    size: int
    due: float
    done: asyncio.Future[int]


class DurableLog:
    """An owned log. Made by `open`; all methods belong to the event loop that opened it.

    The order of records is the order of the calls to `append` and `enqueue`. While the bucket does not answer, or
    its disk is full, the log keeps trying and `trouble` says why; callers wait, or give up with `timeout_s`. Once
    fenced, every call raises `Fenced`, for good.
    """

    def __init__(self, bucket: Bucket, prefix: str, *, tip: Tip, snapshot_seq: int, clock: Clock, options: LogOptions):
        self._url = bucket.url
        self._prefix = prefix
        self._clock = clock
        self._options = options
        self.stats = LogStats()
        self._tip = tip
        self._writer = SegmentWriter(bucket, prefix, tip=tip, clock=clock, options=options, stats=self.stats)
        self._snapshots = Snapshots(bucket, prefix, tip=tip, newest=snapshot_seq, options=options, stats=self.stats)
        self._snapshot_lock = asyncio.Lock()
        self._queue: deque[_Pending] = deque()
        self._queued_bytes = 0
        self._assigned = tip.position
        self._recovered_position = tip.position
        self._last_start = -1e18
        self._wake = asyncio.Event()
        self._flushes: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._stopped: asyncio.Future[StorageError] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, bucket: Bucket, prefix: str, *, clock: Clock, ids: IdSource, options: LogOptions | None = None
    ) -> tuple[DurableLog, Recovered]:
        """Become the owner of the log under `prefix` (made when it is new), and read it back.

        Every earlier owner is fenced from here on. Raises `CorruptObject` naming an object that is missing, corrupt
        or foreign, before anything is written; `FormatVersionUnsupported`; `StorageUnavailable`.
        """
        options = options or LogOptions()
        writer = ids.ulid()
        history = await read_and_claim(bucket, prefix, writer=writer, at=clock.now(), parallel=options.parallel_reads)
        snapshot = history.snapshot
        log = cls(
            bucket,
            prefix,
            tip=Tip.of(history, writer=writer),
            snapshot_seq=snapshot.seq if snapshot is not None else 0,
            clock=clock,
            options=options,
        )
        log._task = asyncio.create_task(log._write_forever(), name=f"log {prefix}")
        recovered = Recovered(
            snapshot=snapshot.body if snapshot is not None else None,
            records=history.records(),
            epoch=history.epoch,
            position=history.position,
        )
        return log, recovered

    @property
    def epoch(self) -> int:
        """This owner's number: larger than that of every owner before it. Good as a fence for the owner's work."""
        return self._tip.epoch

    @property
    def position(self) -> int:
        """Records that are durable."""
        return self._tip.position

    @property
    def assigned(self) -> int:
        """Records that were handed to the log, durable or not yet."""
        return self._assigned

    @property
    def segments_since_snapshot(self) -> int:
        """How much a recovery would replay; the owner takes a snapshot when it grows too long."""
        return self._tip.seq - self._snapshots.newest

    @property
    def trouble(self) -> StorageError | None:
        """Why the current write is being repeated, or None while all is well."""
        return self._writer.trouble

    def enqueue(self, records: Sequence[bytes], *, linger_s: float = 0.0) -> asyncio.Future[int]:
        """Hand over records now; the future gives the position after them once they are durable.

        The records of one call become durable together or not at all. `linger_s` is how long they may wait for
        company while the log is busy, so that many small appends share one write; urgent ones take them along.
        Raises `Fenced`, `TooLarge`, `Overloaded` (more is waiting than `pending_bytes`).
        """
        self._check_open()
        size = sum(map(len, records)) + 4 * len(records)
        if size > self._options.append_bytes:
            raise TooLarge(f"{size} bytes in one append; the limit is {self._options.append_bytes}: use a blob")
        if self._queued_bytes + size > self._options.pending_bytes and self._queue:
            raise Overloaded(
                f"{self._queued_bytes} bytes wait to be written to {self._url}"
                + (f" ({self.trouble.message})" if self.trouble else ""),
                retry_after_s=1.0,
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not records:
            done.set_result(self._assigned)
            return done
        now = self._clock.monotonic()
        # Busy: a write began within the last `linger_s`. Counted from here and not from that write, a group is as large
        # as the wait of its first allows.
        due = now + linger_s if now < self._last_start + linger_s else now
        self._queue.append(_Pending(records, size, due, done))
        self._queued_bytes += size
        self._assigned += len(records)
        self.stats.appends += 1
        self._wake.set()
        return done

    async def append(self, records: Sequence[bytes], *, linger_s: float = 0.0, timeout_s: float | None = None) -> int:
        """`enqueue`, and wait: returns the position after the records once they are durable.

        Raises `StorageUnavailable` after `timeout_s`: the records are then not acknowledged, but may be written
        later all the same. Cancelling the caller does not take them back either.
        """
        done = self.enqueue(records, linger_s=linger_s)
        if timeout_s is None:
            return await done
        try:
            async with asyncio.timeout(timeout_s):
                return await done
        except TimeoutError:
            why = f": {self.trouble.message}" if self.trouble else ""
            raise StorageUnavailable(
                f"not durable after {timeout_s:g} s{why}", details={"prefix": self._prefix}, retry_after_s=1.0
            ) from None

    async def flush(self) -> int:
        """Wait until everything handed over so far is durable; returns that position."""
        self._check_open()
        target = self._assigned
        if self._tip.position < target:
            reached: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._flushes.append((target, reached))
            await reached
        return target

    async def snapshot(self, body: bytes, *, position: int | None = None) -> None:
        """Store the owner's state, so that recovery starts from it, and collect the segments that nobody needs.

        `body` is the state after exactly the records with an index below `position`; None: after all that were
        handed over before this call. It is stored only when those are durable. Raises what the bucket raises; the
        log itself is not harmed by that.
        """
        wanted = self._assigned if position is None else position
        if not self._recovered_position <= wanted <= self._assigned:
            raise ValueError(f"position {wanted} is not between {self._recovered_position} and {self._assigned}")
        async with self._snapshot_lock:
            if self._tip.position < wanted:
                await self.flush()
            self._check_open()
            await self._snapshots.store(body, position=wanted, tip=self._tip, at=self._clock.now())

    async def check_owner(self) -> None:
        """Look whether a newer owner has written. Raises `Fenced`; then the log is stopped for good."""
        self._check_open()
        try:
            await self._writer.check_owner()
        except Fenced as error:
            self._stop(error)
            self._check_open()

    async def wait_stopped(self) -> StorageError:
        """Returns why, when the log can write no more: `Fenced`, `CorruptObject`, or what waiting would not cure."""
        return await asyncio.shield(self._stopped)

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Write what was handed over, as far as that works within `timeout_s`, and stop."""
        self._closing = True
        if not self._stopped.done():
            with contextlib.suppress(StorageError, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stop(StorageUnavailable(f"the log {self._prefix} is closed"))

    # ---- writing ----

    def _check_open(self) -> None:
        if self._stopped.done():
            error = self._stopped.result()
            raise type(error)(error.message, details=error.details)

    async def _write_forever(self) -> None:
        try:
            while True:
                while not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                await self._linger()
                batch = self._take()
                await self._commit(batch)
        except StorageError as error:
            self._stop(error)
        except Exception as error:
            # A defect, of ours or of the bucket's library: whoever waits must hear of it, and not wait for ever.
            self._stop(_defect(self._prefix, error))

    async def _linger(self) -> None:
        """Wait until the most urgent append is due or a segment is full."""
        while self._queued_bytes < self._options.segment_bytes and not self._closing:
            delay = min(pending.due for pending in self._queue) - self._clock.monotonic()
            if delay <= 0:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._queue and (not batch or size + self._queue[0].size <= self._options.segment_bytes):
            pending = self._queue.popleft()
            size += pending.size
            batch.append(pending)
        self._queued_bytes -= size
        return batch

    async def _commit(self, batch: Sequence[_Pending]) -> None:
        self._last_start = self._clock.monotonic()
        position = self._tip.position
        try:
            await self._writer.write([record for pending in batch for record in pending.records])
        except asyncio.CancelledError:
            _fail(batch, StorageUnavailable(f"the log {self._prefix} is closed"))
            raise
        except Exception as error:
            # Nobody may take these for durable; they may yet turn out to be, when the next owner reads the log.
            _fail(batch, error if isinstance(error, StorageError) else _defect(self._prefix, error))
            raise
        self._snapshots.wrote(self._tip)
        for pending in batch:
            position += len(pending.records)
            if not pending.done.done():
                pending.done.set_result(position)
        while self._flushes and self._flushes[0][0] <= self._tip.position:
            target, reached = self._flushes.popleft()
            if not reached.done():
                reached.set_result(target)

    def _stop(self, error: StorageError) -> None:
        if not self._stopped.done():
            self._stopped.set_result(error)
        _fail(self._queue, error)
        self._queue.clear()
        self._queued_bytes = 0
        while self._flushes:
            _fail_future(self._flushes.popleft()[1], error)


def _fail(batch: Sequence[_Pending] | deque[_Pending], error: StorageError) -> None:
    for pending in batch:
        _fail_future(pending.done, error)


def _fail_future(future: asyncio.Future[int], error: StorageError) -> None:
    if not future.done():
        future.set_exception(type(error)(error.message, details=error.details))
        future.exception()  # an owner that does not wait for this one learns it from `wait_stopped`


def _defect(prefix: str, error: Exception) -> StorageError:
    return StorageError(
        f"the log {prefix} cannot be written: {type(error).__name__}: {error}", details={"prefix": prefix}
    )
