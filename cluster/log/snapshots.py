"""Stores an owner's snapshots, and removes the segments that nobody needs any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from cluster.errors import StorageError
from cluster.log.codec import Snapshot, encode_snapshot
from cluster.log.options import LogOptions, LogStats
from cluster.log.reading import present_numbers, segment_key, snapshot_key
from cluster.log.segment_writer import Tip
from cluster.storage.port import Bucket

__all__ = ["Snapshots"]


class Snapshots:
    """The snapshots of one log. `newest` is the segment number that the newest of them covers, 0 before the first."""

    def __init__(self, bucket: Bucket, prefix: str, *, tip: Tip, newest: int, options: LogOptions, stats: LogStats):
        self._bucket = bucket
        self._prefix = prefix
        self._options = options
        self._stats = stats
        self._marks: deque[tuple[int, int, str]] = deque([(tip.position, tip.seq, tip.digest)])
        """Where each segment since `newest` ends: position, number, digest."""
        self._collected_to = 0
        self.newest = newest

    def wrote(self, tip: Tip) -> None:
        """A segment has become durable."""
        self._marks.append((tip.position, tip.seq, tip.digest))

    async def store(self, body: bytes, *, position: int, tip: Tip, at: float) -> None:
        """Store the state after the records below `position`, which are durable, unless a newer one is there."""
        covered, seq, digest = self._covered(position)
        if seq <= self.newest:
            return
        snapshot = Snapshot(
            log=tip.log,
            seq=seq,
            epoch=tip.epoch,
            writer=tip.writer,
            position=position,
            covered=covered,
            previous=digest,
            fences=tuple(number for number in tip.fences if number <= seq),
            at=at,
            body=body,
        )
        fences = frozenset(tip.fences)
        data = await asyncio.to_thread(encode_snapshot, snapshot, compress=self._options.compress)
        await self._bucket.put(snapshot_key(self._prefix, seq), data)
        previous, self.newest = self.newest, seq
        self._stats.snapshots += 1
        while len(self._marks) > 1 and self._marks[1][1] <= seq:
            self._marks.popleft()
        if self._options.collect:
            with contextlib.suppress(StorageError):  # collected next time
                await self._collect(previous, fences)

    def _covered(self, position: int) -> tuple[int, int, str]:
        """The last segment all of whose records are below `position`: where it ends, its number, its digest."""
        found = self._marks[0] if self._marks[0][0] <= position else (0, 0, "")
        for mark in self._marks:
            if mark[0] > position:
                break
            found = mark
        return found

    async def _collect(self, up_to: int, fences: frozenset[int]) -> None:
        """Remove segments up to this number, and all snapshots before it.

        The snapshot before the newest is kept with the segments after it: should the newest be damaged, an operator
        can remove it and recover from the one before. Epoch segments are never removed: a process that was stopped for
        days and writes under its old number must still find that number taken.
        """
        if up_to <= self._collected_to:
            return
        # Snapshots first: one that stays behind its segments would promise a history that is no longer there.
        for seq in await present_numbers(self._bucket, f"{self._prefix}/snap/"):
            if seq < up_to:
                await self._bucket.delete(snapshot_key(self._prefix, seq))
        for seq in await present_numbers(self._bucket, f"{self._prefix}/wal/"):
            if seq <= up_to and seq not in fences:
                await self._bucket.delete(segment_key(self._prefix, seq))
                self._stats.collected += 1
        self._collected_to = up_to
