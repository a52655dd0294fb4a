"""Finished runs in the bucket: many per object, found by id and listed newest first, with no memory per run.

Objects are grouped by the hour in which their runs were created (`done/<hour>/…`), so that a lookup by id opens only
objects whose range holds it. The manifest (one small entry per object) lives in the run store's snapshot and grows by
logged facts; an object that no manifest names is what a crash left, and is removed at the next start.
"""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import zstandard

from cluster.clock import IdSource
from cluster.errors import CorruptObject, FormatVersionUnsupported
from cluster.storage.port import Bucket
from pipelines.run_store.runids import created_ms, order_key

__all__ = ["FORMAT", "HOUR_MS", "Archive", "ArchiveSegment", "ArchivedRun", "Collection"]

FORMAT = 1
_MAGIC = b"HRDONE"
HOUR_MS = 3_600_000
MAX_RUNS_PER_OBJECT = 2000
MAX_BYTES_PER_OBJECT = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedRun:
    """One finished run: `summary` is a row of the list of runs, `record` all that is known of it (opaque bytes)."""

    summary: Mapping[str, Any]
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSegment:
    """One object of the archive: its key, the least and greatest ULID in it, and when the last of its runs ended (0:
    not known, objects of earlier releases)."""

    key: str
    low: str
    high: str
    count: int
    ended: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields, for the log and the snapshot."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ArchiveSegment:
        """The inverse of `to_dict`; fields of later releases are ignored."""
        return cls(key=raw["key"], low=raw["low"], high=raw["high"], count=raw["count"], ended=raw.get("ended") or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """How many runs were collected in all, and before which time (seconds since the epoch) they had ended."""

    runs: int = 0
    before: float = 0.0


class _Loaded:
    __slots__ = ("body", "by_id", "rows", "spans")

    def __init__(self, rows: list[dict[str, Any]], spans: list[tuple[int, int]], body: bytes) -> None:
        self.rows = rows
        self.spans = spans
        self.body = body
        self.by_id = {row["id"]: index for index, row in enumerate(rows)}

    def record(self, run_id: str) -> bytes | None:
        index = self.by_id.get(run_id)
        if index is None:
            return None
        start, length = self.spans[index]
        return self.body[start : start + length]


class Archive:
    """The finished runs of one shard. `replaced` hides ids that are live again (a resumed run)."""

    def __init__(self, *, bucket: Bucket, prefix: str, ids: IdSource, cache: int = 16) -> None:
        self._bucket = bucket
        self._prefix = prefix.rstrip("/") + "/done/"
        self._ids = ids
        self._cache_size = cache
        self._cache: OrderedDict[str, _Loaded] = OrderedDict()
        self._segments: dict[str, list[ArchiveSegment]] = {}
        self._count = 0
        self.collected = Collection()
        """What was removed because it was old enough."""
        self.epoch = 0
        """The owner's epoch in the log: objects carry it, so that a zombie never takes a newer owner's for orphans."""

    def __len__(self) -> int:
        return self._count

    async def write(self, runs: Iterable[ArchivedRun]) -> list[ArchiveSegment]:
        """Put runs into new objects and return their entries. They count only after `add`, once that is logged."""
        hours: dict[int, list[ArchivedRun]] = {}
        for run in runs:
            hours.setdefault(created_ms(order_key(run.summary["id"])) // HOUR_MS, []).append(run)
        out: list[ArchiveSegment] = []
        for hour, members in sorted(hours.items()):
            members.sort(key=lambda run: order_key(run.summary["id"]))
            for chunk in _chunks(members):
                segment = ArchiveSegment(
                    key=f"{self._prefix}{hour:08d}/{self.epoch:010d}-{self._ids.ulid()}",
                    low=order_key(chunk[0].summary["id"]),
                    high=order_key(chunk[-1].summary["id"]),
                    count=len(chunk),
                    ended=max(run.summary.get("finished_at") or 0.0 for run in chunk),
                )
                await self._bucket.create(segment.key, await asyncio.to_thread(_encode, chunk))
                out.append(segment)
        return out

    def add(self, segments: Iterable[ArchiveSegment]) -> None:
        """Take objects into the manifest."""
        for segment in segments:
            self._segments.setdefault(_hour(segment), []).append(segment)
            self._count += segment.count

    @property
    def segments(self) -> list[ArchiveSegment]:
        """All objects, oldest hour first."""
        return [segment for hour in sorted(self._segments) for segment in self._segments[hour]]

    def hour_of(self, segment: ArchiveSegment) -> list[ArchiveSegment]:
        """The objects of the same hour, itself included."""
        return list(self._segments.get(_hour(segment), ()))

    def remove(self, keys: Iterable[str], *, runs: int, before: float) -> None:
        """Take collected objects, which held so many runs that ended `before` this time, out of the manifest."""
        gone = set(keys)
        for hour in list(self._segments):
            kept = [segment for segment in self._segments[hour] if segment.key not in gone]
            if len(kept) < len(self._segments[hour]):
                self._count -= sum(segment.count for segment in self._segments[hour] if segment.key in gone)
                self._segments[hour] = kept
                if not kept:
                    del self._segments[hour]
        for key in gone:
            self._cache.pop(key, None)
        self.collected = Collection(runs=self.collected.runs + runs, before=max(self.collected.before, before))

    async def contents(self, segment: ArchiveSegment) -> tuple[list[dict[str, Any]], bytes]:
        """The rows of an object, and its records one behind the other. Not cached: for passes over everything."""
        loaded = self._cache.get(segment.key) or _decode(await self._bucket.get(segment.key), segment.key)
        return loaded.rows, loaded.body

    async def find(self, run_id: str) -> bytes | None:
        """The newest record of a run, None when it is not here. Raises `CorruptObject`."""
        loaded = await self._holder(run_id)
        return None if loaded is None else loaded.record(run_id)

    async def row(self, run_id: str) -> dict[str, Any] | None:
        """The newest summary of a run, None when it is not here. Raises `CorruptObject`."""
        loaded = await self._holder(run_id)
        return None if loaded is None else loaded.rows[loaded.by_id[run_id]]

    async def _holder(self, run_id: str) -> _Loaded | None:
        key = order_key(run_id)
        try:
            hour = f"{created_ms(key) // HOUR_MS:08d}"
        except ValueError:
            return None
        for segment in reversed(self._segments.get(hour, [])):
            if segment.low <= key <= segment.high:
                loaded = await self._load(segment)
                if run_id in loaded.by_id:
                    return loaded
        return None

    async def rows(self, *, before: str | None, since: str) -> AsyncIterator[dict[str, Any]]:
        """Summaries with `since` <= ULID < `before`, newest first, each run once (a resumed run: its last end)."""
        for hour in sorted(self._segments, reverse=True):
            segments = self._segments[hour]
            if before is not None and min(segment.low for segment in segments) >= before:
                continue
            if max(segment.high for segment in segments) < since:
                return
            async for row in self._hour_rows(segments, before, since):
                yield row

    async def _hour_rows(
        self, segments: Sequence[ArchiveSegment], before: str | None, since: str
    ) -> AsyncIterator[dict[str, Any]]:
        # Objects overlap only a little, so they are opened one by one as the merge reaches their upper end.
        # A later object (greater position) wins for a run that stands in several.
        waiting = sorted(enumerate(segments), key=lambda entry: entry[1].high)
        heap: list[tuple[_Reversed, int, dict[str, Any]]] = []
        last = ""
        while waiting or heap:
            while waiting and (not heap or waiting[-1][1].high >= heap[0][0].text):
                position, segment = waiting.pop()
                if segment.high < since or (before is not None and segment.low >= before):
                    continue
                for row in (await self._load(segment)).rows:
                    key = order_key(row["id"])
                    if key >= since and (before is None or key < before):
                        heapq.heappush(heap, (_Reversed(key), -position, row))
            if not heap:
                continue
            key_, _, row = heapq.heappop(heap)
            if key_.text != last:
                last = key_.text
                yield row

    async def collect_orphans(self) -> int:
        """Remove objects that no manifest names (a crash between writing and logging). Returns how many.

        Only those of earlier owners: they can log nothing any more, whereas this owner, or one that has followed it
        without its knowing, may be about to.
        """
        known = {segment.key for segments in self._segments.values() for segment in segments}
        found = await self._bucket.list(self._prefix)
        orphans = [key for key in found if key not in known and _epoch(key) < self.epoch]
        for key in orphans:
            await self._bucket.delete(key)
        return len(orphans)

    def to_state(self) -> list[dict[str, Any]]:
        """The manifest, for a snapshot."""
        return [segment.to_dict() for segments in self._segments.values() for segment in segments]

    def restore(self, state: Iterable[Mapping[str, Any]], collected: Sequence[float] | None = None) -> None:
        """Take a snapshot's manifest, and how many runs were collected before which time."""
        self._segments, self._count = {}, 0
        runs, before = collected or (0, 0.0)
        self.collected = Collection(runs=int(runs), before=before)
        self.add(ArchiveSegment.from_dict(raw) for raw in state)

    async def _load(self, segment: ArchiveSegment) -> _Loaded:
        loaded = self._cache.get(segment.key)
        if loaded is None:
            loaded = _decode(await self._bucket.get(segment.key), segment.key)
            self._cache[segment.key] = loaded
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(segment.key)
        return loaded


class _Reversed:
    """A text that sorts the other way round."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __lt__(self, other: _Reversed) -> bool:
        return self.text > other.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]  # only compared


def _hour(segment: ArchiveSegment) -> str:
    return segment.key.rsplit("/", 2)[-2]


def _epoch(key: str) -> int:
    """The owner that wrote an object; what is not such an object is left alone, as if it were of a later one."""
    epoch, separator, _ = key.rsplit("/", 1)[-1].partition("-")
    return int(epoch) if separator and epoch.isdigit() else 1 << 63


def _chunks(runs: list[ArchivedRun]) -> Iterable[list[ArchivedRun]]:
    chunk: list[ArchivedRun] = []
    size = 0
    for run in runs:
        if chunk and (len(chunk) >= MAX_RUNS_PER_OBJECT or size + len(run.record) > MAX_BYTES_PER_OBJECT):
            yield chunk
            chunk, size = [], 0
        chunk.append(run)
        size += len(run.record)
    if chunk:
        yield chunk


def _encode(runs: Sequence[ArchivedRun]) -> bytes:
    body = b"".join(run.record for run in runs)
    packed = zstandard.ZstdCompressor(level=3).compress(body)
    header = orjson.dumps(
        {
            "format": FORMAT,
            "rows": [run.summary for run in runs],
            "lengths": [len(run.record) for run in runs],
            "size": len(body),
            "crc": zlib.crc32(packed),
        }
    )
    head = _MAGIC + len(header).to_bytes(4, "big") + zlib.crc32(header).to_bytes(4, "big")
    return head + header + packed


def _decode(data: bytes, key: str) -> _Loaded:
    def corrupt(why: str) -> CorruptObject:
        return CorruptObject(f"the archive object {key} is damaged: {why}", details={"key": key})

    start = len(_MAGIC) + 8
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise corrupt("it does not begin as an archive of runs does")
    length = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 4], "big")
    header_bytes = data[start : start + length]
    if zlib.crc32(header_bytes) != int.from_bytes(data[len(_MAGIC) + 4 : start], "big"):
        raise corrupt("its header's checksum is wrong")
    header = orjson.loads(header_bytes)
    if header["format"] != FORMAT:
        raise FormatVersionUnsupported(
            f"{key} has archive format {header['format']}, this release reads {FORMAT}", details={"key": key}
        )
    packed = data[start + length :]
    if zlib.crc32(packed) != header["crc"]:
        raise corrupt("its checksum is wrong")
    body = zstandard.ZstdDecompressor().decompress(packed, max_output_size=header["size"])
    spans: list[tuple[int, int]] = []
    offset = 0
    for size in header["lengths"]:
        spans.append((offset, size))
        offset += size
    return _Loaded(header["rows"], spans, body)
