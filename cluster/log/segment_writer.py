"""Writes an owner's segments one after another, each surely: exactly these bytes, or the owner is fenced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.clock import Clock
from cluster.errors import (
    AlreadyExists,
    CorruptObject,
    Fenced,
    FormatVersionUnsupported,
    ObjectNotFound,
    StorageError,
    UnsafeBucket,
)
from cluster.log.codec import Segment, decode_segment, digest_of, encode_segment
from cluster.log.options import LogOptions, LogStats
from cluster.log.reading import History, segment_key
from cluster.storage.port import Bucket

__all__ = ["SegmentWriter", "Tip"]


@dataclass
class Tip:
    """The end of the log as its owner knows it: what is durable. `fences` are the numbers of all epoch segments."""

    log: str
    epoch: int
    writer: str
    seq: int
    position: int
    digest: str
    fences: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, history: History, *, writer: str) -> Tip:
        """Behind a history that ends with the owner's own epoch segment."""
        return cls(
            log=history.log or writer,
            epoch=history.epoch,
            writer=writer,
            seq=history.seq,
            position=history.position,
            digest=history.digest,
            fences=list(history.fences),
        )


class SegmentWriter:
    """The only one that writes under `wal/` for its owner; called by one task at a time."""

    def __init__(self, bucket: Bucket, prefix: str, *, tip: Tip, clock: Clock, options: LogOptions, stats: LogStats):
        self._bucket = bucket
        self._prefix = prefix
        self._clock = clock
        self._options = options
        self._stats = stats
        self.tip = tip
        self.trouble: StorageError | None = None
        """Why the current write is being repeated, or None while all is well."""

    async def write(self, records: Sequence[bytes]) -> None:
        """Make the next segment of these records; `tip` is behind it then.

        Repeats for as long as the bucket does not answer, or its disk is full. Raises `Fenced` when a newer owner has
        written, `CorruptObject` when what stands there is no segment.
        """
        tip = self.tip
        segment = Segment(
            kind="records",
            log=tip.log,
            seq=tip.seq + 1,
            epoch=tip.epoch,
            writer=tip.writer,
            first=tip.position,
            previous=tip.digest,
            at=self._clock.now(),
            records=records,
        )
        data = encode_segment(segment, compress=self._options.compress)
        await self._create_surely(segment.seq, data)
        tip.seq += 1
        tip.position += len(records)
        tip.digest = digest_of(data)
        self._stats.segments += 1
        self._stats.records += len(records)
        self._stats.bytes_written += len(data)

    async def check_owner(self) -> None:
        """Look whether a newer owner has written. Raises `Fenced` or `CorruptObject`."""
        seq = self.tip.seq + 1
        key = segment_key(self._prefix, seq)
        try:
            present = await self._bucket.get(key)
        except ObjectNotFound:
            return
        if self.tip.seq + 1 == seq and not self._wrote(key, present):
            raise _fenced(self._prefix, key, present)

    def _wrote(self, key: str, present: bytes) -> bool:
        try:
            return decode_segment(present, key=key).writer == self.tip.writer
        except (CorruptObject, FormatVersionUnsupported):
            return False

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
                self.trouble = error
                unsure = True
                self._stats.retries += 1
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._options.retry_max_s)
                continue
            if present != data:
                raise _fenced(self._prefix, key, present)
            if unsure or self._clock.monotonic() - began > self._options.slow_write_s:
                # The records are durable. But a newer owner may have read them, and more may have happened since.
                successor = segment_key(self._prefix, seq + 1)
                try:
                    next_one = await self._bucket.get(successor)
                except ObjectNotFound:
                    pass
                except StorageError as error:
                    self.trouble = error
                    await asyncio.sleep(delay)
                    continue
                else:
                    raise _fenced(self._prefix, successor, next_one)
            self.trouble = None
            return


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
