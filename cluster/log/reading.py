"""Reads a whole log from its bucket, checks that nothing is missing or replaced, and changes nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import CorruptObject, ObjectNotFound, StorageUnavailable
from cluster.log.codec import GENESIS, Segment, Snapshot, decode_segment, decode_snapshot, digest_of
from cluster.storage.port import Bucket

__all__ = ["History", "LogReader", "present_numbers", "read_history", "segment_key", "snapshot_key"]

_DIGITS = 20
_ATTEMPTS = 20
"""How often reading starts again because the live owner collected what was being read, or the bucket did not answer."""


def segment_key(prefix: str, seq: int) -> str:
    """Where segment `seq` of the log under `prefix` stands: fixed width, so that keys sort like numbers."""
    return f"{prefix}/wal/{seq:0{_DIGITS}d}"


def snapshot_key(prefix: str, seq: int) -> str:
    """Where the snapshot that covers segments up to `seq` stands."""
    return f"{prefix}/snap/{seq:0{_DIGITS}d}"


@dataclass(kw_only=True)
class History:
    """What was read: a snapshot (or None) and every segment after it, in order, checked against each other."""

    snapshot: Snapshot | None = None
    segments: list[Segment] = field(default_factory=list)
    digest: str = GENESIS
    """The last segment's."""

    @property
    def log(self) -> str | None:
        """The log's own identity, given when its first segment was written; None for an empty log."""
        if self.segments:
            return self.segments[0].log
        return self.snapshot.log if self.snapshot else None

    @property
    def seq(self) -> int:
        """The last segment's number; 0 for an empty log."""
        if self.segments:
            return self.segments[-1].seq
        return self.snapshot.seq if self.snapshot else 0

    @property
    def epoch(self) -> int:
        if self.segments:
            return self.segments[-1].epoch
        return self.snapshot.epoch if self.snapshot else 0

    @property
    def position(self) -> int:
        """How many records the log has held since its beginning."""
        if self.segments:
            return self.segments[-1].first + len(self.segments[-1].records)
        return self.snapshot.covered if self.snapshot else 0

    @property
    def fences(self) -> tuple[int, ...]:
        """Numbers of all epoch segments so far."""
        before = self.snapshot.fences if self.snapshot else ()
        return (*before, *(segment.seq for segment in self.segments if segment.kind == "epoch"))

    def records(self) -> list[bytes]:
        """Every record after the snapshot, in order."""
        start = self.snapshot.position if self.snapshot else 0
        out: list[bytes] = []
        for segment in self.segments:
            skip = max(0, start - segment.first)
            out.extend(itertools.islice(segment.records, skip, None) if skip else segment.records)
        return out

    def add(self, data: bytes, *, key: str) -> None:
        """Append the next segment's bytes. Raises `CorruptObject` when it does not follow from what is here."""
        segment = decode_segment(data, key=key)
        wrong = self._wrong(segment)
        if wrong is not None:
            raise CorruptObject(
                f"{key} does not belong here: {wrong}. The log was mixed with another one or changed by hand; "
                "restore the object from a copy of the bucket",
                details={"key": key},
            )
        self.segments.append(segment)
        self.digest = digest_of(data)

    def _wrong(self, segment: Segment) -> str | None:
        if segment.seq != self.seq + 1:
            return f"it says that it is segment {segment.seq}, where {self.seq + 1} comes next"
        if self.log is not None and segment.log != self.log:
            return f"it is of log {segment.log}, the others are of log {self.log}"
        if segment.previous != self.digest:
            return "the segment before it is not the one that it was written after"
        if segment.first != self.position:
            return f"its first record is number {segment.first}, where {self.position} comes next"
        if segment.kind == "epoch" and segment.epoch <= self.epoch:
            return f"it starts epoch {segment.epoch} after epoch {self.epoch}"
        if segment.kind == "records" and segment.epoch != self.epoch:
            return f"it was written in epoch {segment.epoch}, inside epoch {self.epoch}"
        return None


async def read_history(bucket: Bucket, prefix: str, *, oldest: bool = False, parallel: int = 32) -> History:
    """The newest snapshot and all segments after it; with `oldest`, as much of the past as the bucket still holds.

    Raises `CorruptObject` naming the first object that is missing, corrupt or foreign. An owner may go on writing,
    taking snapshots and collecting old segments meanwhile.
    """
    stray = False
    for _ in range(_ATTEMPTS):
        snapshots = await present_numbers(bucket, f"{prefix}/snap/")
        newest = snapshots[-1] if snapshots else 0
        after = segment_key(prefix, newest) if newest and not oldest else ""
        present = await present_numbers(bucket, f"{prefix}/wal/", start_after=after)
        base = _oldest_base(snapshots, present) if oldest else newest
        if stray and snapshots:
            base = max(base, snapshots[0])
        wanted = [seq for seq in present if seq > base]
        try:
            return await _read(bucket, prefix, base, wanted, parallel)
        except (CorruptObject, ObjectNotFound) as error:
            # A missing object is normal when the live owner has taken a newer snapshot and collected it, or was still
            # collecting what the newest one covers.
            if isinstance(error, ObjectNotFound) and await _is_gone(bucket, str(error.details.get("key"))):
                continue
            if await present_numbers(bucket, f"{prefix}/snap/", start_after=snapshot_key(prefix, newest)):
                continue
            if oldest and not stray and snapshots and base < snapshots[0]:
                stray = await _has_stray(bucket, prefix, snapshots[0], present)
                if stray:
                    continue
            if isinstance(error, ObjectNotFound):
                raise _missing(str(error.details.get("key"))) from error
            raise
    raise StorageUnavailable(f"the log {bucket.url}/{prefix} changes faster than it can be read: try again")


async def _has_stray(bucket: Bucket, prefix: str, base: int, present: Sequence[int]) -> bool:
    """Whether an opener that lost its race left an epoch segment where an older one had been collected.

    It found the number free, and saw only then that a snapshot covers it. That snapshot knows the true epochs; other
    segments that turn up after their collection are late repetitions, and the same as they were.
    """
    key = snapshot_key(prefix, base)
    try:
        fences = decode_snapshot(await patient_get(bucket, key), key=key).fences
        doubtful = [seq for seq in present if seq <= base and seq not in fences]
        for seq, data in zip(doubtful, await _fetch(bucket, prefix, doubtful, 8), strict=True):
            if decode_segment(data, key=segment_key(prefix, seq)).kind == "epoch":
                return True
    except (CorruptObject, ObjectNotFound):
        pass  # the reading itself says what is wrong
    return False


async def _is_gone(bucket: Bucket, key: str) -> bool:
    """Whether what was listed before is no longer: then it was removed, and did not get lost."""
    return key not in await patient_list(bucket, key)


async def extend_history(bucket: Bucket, prefix: str, history: History) -> None:
    """Read the segments that were written since. Raises `ObjectNotFound` when some were collected already."""
    numbers = await present_numbers(bucket, f"{prefix}/wal/", start_after=segment_key(prefix, history.seq))
    if numbers != list(range(history.seq + 1, history.seq + 1 + len(numbers))):
        raise ObjectNotFound(f"segments after {segment_key(prefix, history.seq)} were collected")
    for number, data in zip(numbers, await _fetch(bucket, prefix, numbers, 8), strict=True):
        history.add(data, key=segment_key(prefix, number))


class LogReader:
    """Reads a log without owning it: no epoch is claimed and nothing is written, so the owner is not disturbed."""

    def __init__(self, bucket: Bucket, prefix: str):
        self._bucket = bucket
        self._prefix = prefix

    async def read(self, *, oldest: bool = True) -> History:
        """See `read_history`."""
        return await read_history(self._bucket, self._prefix, oldest=oldest)


async def _read(bucket: Bucket, prefix: str, base: int, wanted: Sequence[int], parallel: int) -> History:
    history = History()
    if base:
        key = snapshot_key(prefix, base)
        snapshot = decode_snapshot(await patient_get(bucket, key), key=key)
        if snapshot.seq != base:
            raise CorruptObject(f"{key} is the snapshot of segment {snapshot.seq}: it was moved", details={"key": key})
        history = History(snapshot=snapshot, digest=snapshot.previous)
    for expected, seq in enumerate(wanted, start=base + 1):
        if seq != expected:
            raise _missing(segment_key(prefix, expected))
    for start in range(0, len(wanted), 1024):  # bounds what is held undecoded
        numbers = wanted[start : start + 1024]
        for seq, data in zip(numbers, await _fetch(bucket, prefix, numbers, parallel), strict=True):
            history.add(data, key=segment_key(prefix, seq))
    if history.snapshot is not None and history.position < history.snapshot.position:
        raise _missing(segment_key(prefix, history.seq + 1))
    return history


async def _fetch(bucket: Bucket, prefix: str, numbers: Sequence[int], parallel: int) -> list[bytes]:
    """The segments' bytes, in order, `parallel` at a time."""
    out: list[bytes] = [b""] * len(numbers)
    todo = iter(enumerate(numbers))

    async def worker() -> None:
        for index, seq in todo:
            out[index] = await patient_get(bucket, segment_key(prefix, seq))

    workers = [asyncio.create_task(worker()) for _ in range(min(parallel, len(numbers)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return out


async def patient_get(bucket: Bucket, key: str) -> bytes:
    """`get`, tried again some times while the bucket does not answer: recovery reads thousands of objects."""
    for attempt in range(_ATTEMPTS):
        try:
            return await bucket.get(key)
        except StorageUnavailable:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(min(0.05 * 2**attempt, 2.0))
    raise AssertionError("unreachable")


async def patient_list(bucket: Bucket, prefix: str, *, start_after: str = "") -> list[str]:
    """`list`, tried again like `patient_get`."""
    for attempt in range(_ATTEMPTS):
        try:
            return await bucket.list(prefix, start_after=start_after)
        except StorageUnavailable:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(min(0.05 * 2**attempt, 2.0))
    raise AssertionError("unreachable")


async def present_numbers(bucket: Bucket, folder: str, *, start_after: str = "") -> list[int]:
    """The numbers of the objects in a log's folder, in order. Raises `CorruptObject` for one that is not the log's."""
    numbers = []
    for key in await patient_list(bucket, folder, start_after=start_after):
        name = key.removeprefix(folder)
        if len(name) != _DIGITS or not name.isdigit():
            raise CorruptObject(f"{key} is not an object of a log: move it away", details={"key": key})
        numbers.append(int(name))
    return numbers


def _oldest_base(snapshots: Sequence[int], present: Sequence[int]) -> int:
    """Where the longest unbroken history starts: 0, or the oldest snapshot whose following segments are all here."""
    # Nothing after the second newest snapshot is ever collected: a gap there is damage, which the reading will name.
    most = snapshots[-2] if len(snapshots) > 1 else 1 << 62
    start = present[-1] if present else 0
    for seq in reversed(present):
        if seq not in (start, start - 1):
            break
        start = seq
    if start <= 1:
        return 0 if present else (snapshots[-1] if snapshots else 0)
    return min(most, next((seq for seq in snapshots if seq >= start - 1), 0))


def _missing(key: str) -> CorruptObject:
    return CorruptObject(
        f"{key} is missing: nothing after it was read. Restore the object from a copy of the bucket",
        details={"key": key},
    )
