"""The write-ahead log that makes an owner recoverable: claim, append in groups, snapshot, collect.

One owner writes one segment at a time, each made with create-if-absent: whoever creates `wal/<seq>` owns that number.
A new owner takes the next number for its epoch segment, so the old owner's next write finds its number taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from cluster.clock import Clock, IdSource
from cluster.errors import (
    AlreadyExists,
    CorruptObject,
    Fenced,
    FormatVersionUnsupported,
    ObjectNotFound,
    Overloaded,
    StorageError,
    StorageUnavailable,
    TooLarge,
    UnsafeBucket,
)
from cluster.log.codec import Segment, Snapshot, decode_segment, digest_of, encode_segment, encode_snapshot
from cluster.log.reading import (
    History,
    extend_history,
    patient_get,
    patient_list,
    read_history,
    segment_key,
    snapshot_key,
)
from cluster.storage.port import Bucket

__all__ = ["DurableLog", "LogOptions", "LogStats", "Recovered"]

_CLAIM_TRIES = 20

Offload = Callable[[Callable[[], bytes]], Awaitable[bytes]]


async def _in_thread(work: Callable[[], bytes]) -> bytes:
    return await asyncio.to_thread(work)


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Limits and tactics. Sizes in bytes, times in seconds.

    After a write that took longer than `slow_write_s`, or had to be repeated, the owner first looks whether another one
    has taken over meanwhile, before anybody acts on what was written.
    `collect` removes segments that an older snapshot than the newest covers; without it the whole history stays.
    `offload` runs a long computation (compressing a snapshot) away from the event loop; simulations pass their own.
    """

    segment_bytes: int = 4 << 20
    append_bytes: int = 64 << 20
    pending_bytes: int = 256 << 20
    compress: bool = True
    collect: bool = True
    parallel_reads: int = 32
    retry_initial_s: float = 0.05
    retry_max_s: float = 5.0
    slow_write_s: float = 1.0
    offload: Offload = _in_thread


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


@dataclass
class LogStats:
    """Counts since this owner opened the log. `segments` is bucket writes; `retries` those that had to be repeated."""

    appends: int = 0
    records: int = 0
    segments: int = 0
    bytes_written: int = 0
    retries: int = 0
    snapshots: int = 0
    collected: int = 0


@dataclass
class _Tip:
    """The end of the log as this owner knows it."""

    seq: int
    position: int
    digest: str
    fences: list[int] = field(default_factory=list)


class DurableLog:
    """An owned log. Made by `open`; all methods belong to the event loop that opened it.

    The order of records is the order of the calls to `append` and `enqueue`. While the bucket does not answer, or
    its disk is full, the log keeps trying and `trouble` says why; callers wait, or give up with `timeout_s`. Once
    fenced, every call raises `Fenced`, for good.
    """

    def __init__(
        self,
        bucket: Bucket,
        prefix: str,
        *,
        log: str,
        epoch: int,
        writer: str,
        clock: Clock,
        options: LogOptions,
        tip: _Tip,
    ):
        self._bucket = bucket
        self._prefix = prefix
        self._log = log
        self._epoch = epoch
        self._writer = writer
        self._clock = clock
        self._options = options
        self._tip = tip
        self._queue: deque[_Pending] = deque()
        self._queued_bytes = 0
        self._assigned = tip.position
        self._recovered_position = tip.position
        self._last_start = -1e18
        self._wake = asyncio.Event()
        self._flushes: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._stopped: asyncio.Future[StorageError] = asyncio.get_running_loop().create_future()
        self._marks: deque[tuple[int, int, str]] = deque([(tip.position, tip.seq, tip.digest)])
        self._snapshot_lock = asyncio.Lock()
        self._snapshot_seq = 0
        self._collected_to = 0
        self._trouble: StorageError | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.stats = LogStats()

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
        while True:
            history = await read_history(bucket, prefix, parallel=options.parallel_reads)
            log_id = history.log or writer
            claimed = await _claim(bucket, prefix, history, log_id=log_id, writer=writer, at=clock.now())
            if claimed:
                break
        tip = _Tip(history.seq, history.position, history.digest, list(history.fences))
        log = cls(bucket, prefix, log=log_id, epoch=history.epoch, writer=writer, clock=clock, options=options, tip=tip)
        if history.snapshot is not None:
            log._snapshot_seq = history.snapshot.seq
        log._task = asyncio.create_task(log._write_forever(), name=f"log {prefix}")
        recovered = Recovered(
            snapshot=history.snapshot.body if history.snapshot else None,
            records=history.records(),
            epoch=history.epoch,
            position=history.position,
        )
        return log, recovered

    @property
    def epoch(self) -> int:
        """This owner's number: larger than that of every owner before it. Good as a fence for the owner's work."""
        return self._epoch

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
        return self._tip.seq - self._snapshot_seq

    @property
    def trouble(self) -> StorageError | None:
        """Why the current write is being repeated, or None while all is well."""
        return self._trouble

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
                f"{self._queued_bytes} bytes wait to be written to {self._bucket.url}"
                + (f" ({self._trouble.message})" if self._trouble else ""),
                retry_after_s=1.0,
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not records:
            done.set_result(self._assigned)
            return done
        now = self._clock.monotonic()
        due = now if linger_s <= 0 else min(now + linger_s, max(now, self._last_start + linger_s))
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
            why = f": {self._trouble.message}" if self._trouble else ""
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
            covered, seq, digest = self._covered(wanted)
            if seq <= self._snapshot_seq:
                return  # a newer or equal one is there
            snapshot = Snapshot(
                log=self._log,
                seq=seq,
                epoch=self._epoch,
                writer=self._writer,
                position=wanted,
                covered=covered,
                previous=digest,
                fences=tuple(number for number in self._tip.fences if number <= seq),
                at=self._clock.now(),
                body=body,
            )
            data = await self._options.offload(lambda: encode_snapshot(snapshot, compress=self._options.compress))
            await self._bucket.put(snapshot_key(self._prefix, seq), data)
            previous, self._snapshot_seq = self._snapshot_seq, seq
            self.stats.snapshots += 1
            while len(self._marks) > 1 and self._marks[1][1] <= seq:
                self._marks.popleft()
            if self._options.collect:
                with contextlib.suppress(StorageError):  # collected next time
                    await self._collect(previous)

    async def check_owner(self) -> None:
        """Look whether a newer owner has written. Raises `Fenced`; then the log is stopped for good."""
        self._check_open()
        seq = self._tip.seq + 1
        key = segment_key(self._prefix, seq)
        try:
            present = await self._bucket.get(key)
        except ObjectNotFound:
            return
        if self._tip.seq + 1 == seq and decode_segment(present, key=key).writer != self._writer:
            self._stop(_fenced(self._prefix, key, present))
            self._check_open()

    async def wait_stopped(self) -> StorageError:
        """Returns why, when the log can write no more: `Fenced` or `CorruptObject`."""
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
        tip = self._tip
        self._last_start = self._clock.monotonic()
        segment = Segment(
            kind="records",
            log=self._log,
            seq=tip.seq + 1,
            epoch=self._epoch,
            writer=self._writer,
            first=tip.position,
            previous=tip.digest,
            at=self._clock.now(),
            records=[record for pending in batch for record in pending.records],
        )
        data = encode_segment(segment, compress=self._options.compress)
        try:
            await self._create_surely(segment.seq, data)
        except BaseException as error:
            # Nobody may take these for durable; they may yet turn out to be, when the next owner reads the log.
            told = error if isinstance(error, StorageError) else StorageUnavailable(f"the log {self._prefix} is closed")
            _fail(batch, told)
            raise
        tip.seq += 1
        tip.position += len(segment.records)
        tip.digest = digest_of(data)
        self._marks.append((tip.position, tip.seq, tip.digest))
        self.stats.segments += 1
        self.stats.records += len(segment.records)
        self.stats.bytes_written += len(data)
        position = segment.first
        for pending in batch:
            position += len(pending.records)
            if not pending.done.done():
                pending.done.set_result(position)
        while self._flushes and self._flushes[0][0] <= tip.position:
            target, reached = self._flushes.popleft()
            if not reached.done():
                reached.set_result(target)

    async def _create_surely(self, seq: int, data: bytes) -> None:
        """Returns when exactly these bytes are segment `seq`. Raises `Fenced` when others are."""
        key = segment_key(self._prefix, seq)
        delay = self._options.retry_initial_s
        began = self._clock.monotonic()
        unsure = False
        while True:
            present: bytes | None = data
            try:
                try:
                    await self._bucket.create(key, data)
                except AlreadyExists:
                    # Either a rival's, or our own, written by an earlier try whose answer was lost.
                    try:
                        present = await self._bucket.get(key)
                    except ObjectNotFound:
                        present = None
            except UnsafeBucket:
                raise
            except StorageError as error:
                # Whether it was written is unknown: no other bytes may be tried under this number, only these again.
                self._trouble = error
                unsure = True
                self.stats.retries += 1
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._options.retry_max_s)
                continue
            if present != data:
                raise _fenced(self._prefix, key, present)
            if unsure or self._clock.monotonic() - began > self._options.slow_write_s:
                # The records are durable. But a newer owner may have read them, and more may have happened since.
                successor = segment_key(self._prefix, seq + 1)
                try:
                    raise _fenced(self._prefix, successor, await self._bucket.get(successor))
                except ObjectNotFound:
                    pass
                except StorageUnavailable as error:
                    self._trouble = error
                    await asyncio.sleep(delay)
                    continue
            self._trouble = None
            return

    def _stop(self, error: StorageError) -> None:
        if not self._stopped.done():
            self._stopped.set_result(error)
        _fail(self._queue, error)
        self._queue.clear()
        self._queued_bytes = 0
        while self._flushes:
            _fail_future(self._flushes.popleft()[1], error)

    # ---- snapshots ----

    def _covered(self, position: int) -> tuple[int, int, str]:
        """The last segment all of whose records are below `position`: where it ends, its number, its digest."""
        found = self._marks[0] if self._marks[0][0] <= position else (0, 0, "")
        for mark in self._marks:
            if mark[0] > position:
                break
            found = mark
        return found

    async def _collect(self, up_to: int) -> None:
        """Remove segments up to this number, and all snapshots before it.

        The snapshot before the newest is kept with the segments after it: should the newest be damaged, an operator
        can remove it and recover from the one before. Epoch segments are never removed: a process that was stopped for
        days and writes under its old number must still find that number taken.
        """
        if up_to <= self._collected_to:
            return
        fences = set(self._tip.fences)
        # Snapshots first: one that stays behind its segments would promise a history that is no longer there.
        for seq in await _present(self._bucket, f"{self._prefix}/snap/", up_to - 1):
            await self._bucket.delete(snapshot_key(self._prefix, seq))
        for seq in await _present(self._bucket, f"{self._prefix}/wal/", up_to):
            if seq not in fences:
                await self._bucket.delete(segment_key(self._prefix, seq))
                self.stats.collected += 1
        self._collected_to = up_to


async def _claim(bucket: Bucket, prefix: str, history: History, *, log_id: str, writer: str, at: float) -> bool:
    """Write the epoch segment after everything else. False: what was read is outdated, read it again."""
    tries = 0
    while True:
        seq = history.seq + 1
        segment = Segment(
            kind="epoch",
            log=log_id,
            seq=seq,
            epoch=history.epoch + 1,
            writer=writer,
            first=history.position,
            previous=history.digest,
            at=at,
        )
        data = encode_segment(segment)
        try:
            await bucket.create(segment_key(prefix, seq), data)
        except AlreadyExists:
            try:
                if await patient_get(bucket, segment_key(prefix, seq)) != data:
                    if history.log is None:
                        return False
                    await extend_history(bucket, prefix, history)
                    continue
            except ObjectNotFound:
                return False
        except StorageUnavailable:
            tries += 1
            if tries == _CLAIM_TRIES:
                raise
            await asyncio.sleep(min(0.05 * 2**tries, 2.0))
            continue
        # Was the number free because nobody had written it, or because it had been collected since we read? In the
        # second case a snapshot that covers it exists: it was durable before anything was collected.
        if await patient_list(
            bucket, f"{prefix}/snap/", start_after=snapshot_key(prefix, seq - 1)
        ) or await patient_list(bucket, f"{prefix}/wal/", start_after=segment_key(prefix, seq)):
            return False
        history.add(data, key=segment_key(prefix, seq))
        return True


async def _present(bucket: Bucket, folder: str, up_to: int) -> list[int]:
    return [seq for key in await bucket.list(folder) if (seq := int(key.rpartition("/")[2])) <= up_to]


def _fail(batch: Sequence[_Pending] | deque[_Pending], error: StorageError) -> None:
    for pending in batch:
        _fail_future(pending.done, error)


def _fail_future(future: asyncio.Future[int], error: StorageError) -> None:
    if not future.done():
        future.set_exception(type(error)(error.message, details=error.details))
        future.exception()  # an owner that does not wait for this one learns it from `wait_stopped`


def _fenced(prefix: str, key: str, present: bytes | None) -> StorageError:
    if present is None:
        return Fenced(f"a newer owner of {prefix} has written and collected {key}: this one stops")
    try:
        rival = decode_segment(present, key=key)
    except FormatVersionUnsupported as error:
        return Fenced(f"a newer owner of {prefix} has written {key} ({error.message}): this one stops")
    except CorruptObject as error:
        return error
    return Fenced(
        f"a newer owner of {prefix} (epoch {rival.epoch}) has written {key}: this one stops",
        details={"prefix": prefix, "epoch": rival.epoch, "seq": rival.seq, "writer": rival.writer},
    )
