"""The log's behaviour that needs no real bucket: order, patience, limits, lingering, the codec's errors."""

from __future__ import annotations

import asyncio
import random
from contextvars import Context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import ManualClock, SystemIds
from cluster.errors import (
    CorruptObject,
    Fenced,
    FormatVersionUnsupported,
    Overloaded,
    StorageError,
    StorageUnavailable,
    TooLarge,
)
from cluster.log import DurableLog, LogOptions
from cluster.log.codec import Segment, Snapshot, decode_segment, decode_snapshot, encode_segment, encode_snapshot
from cluster.simulation import LoopClock, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket
from tests.virtual_time import in_virtual_time


class Full(MemoryBucket):
    """A bucket whose disk is full until `free`."""

    free = False

    async def create(self, key: str, data: bytes) -> None:
        if not self.free and "wal/00000000000000000001" not in key:
            await asyncio.sleep(0)
            raise StorageError("no space left for the test")
        await super().create(key, data)


async def opened(bucket: MemoryBucket, options: LogOptions | None = None) -> DurableLog:
    log, _ = await DurableLog.open(bucket, "runs/0", clock=ManualClock(), ids=SystemIds(), options=options)
    return log


@in_virtual_time
async def test_a_full_disk_is_waited_out() -> None:
    """While the disk is full appends wait and say why; when there is space again nothing is lost or doubled."""
    bucket = Full()
    log = await opened(bucket, LogOptions(retry_initial_s=0.001, retry_max_s=0.001))
    with pytest.raises(StorageUnavailable, match="no space left for the test"):
        await log.append([b"1"], timeout_s=0.05)
    assert log.trouble is not None
    waiting = asyncio.create_task(log.append([b"2"]))
    await asyncio.sleep(0.01)
    bucket.free = True
    assert await waiting == 2
    assert log.trouble is None
    _, found = await DurableLog.open(bucket, "runs/0", clock=ManualClock(), ids=SystemIds())
    assert found.records == [b"1", b"2"]


class Denied(MemoryBucket):
    """A bucket whose writes are done though their answers are lost, and where reads of the next segment are refused
    until `allowed`."""

    lost = 0
    allowed = True

    async def create(self, key: str, data: bytes) -> None:
        await super().create(key, data)
        if self.lost:
            self.lost -= 1
            raise StorageUnavailable("no answer (a test)")

    async def get(self, key: str) -> bytes:
        if not self.allowed and key not in self.objects:
            await asyncio.sleep(0)
            raise StorageError("403: the token has expired (a test)")
        return await super().get(key)


@in_virtual_time
async def test_a_refused_look_at_the_next_segment_is_waited_out() -> None:
    """After a lost answer the owner looks whether it still is one; that it may not look now does not end it."""
    bucket = Denied()
    log = await opened(bucket, LogOptions(retry_initial_s=0.001, retry_max_s=0.001))
    bucket.lost, bucket.allowed = 1, False
    with pytest.raises(StorageUnavailable, match="the token has expired"):
        await log.append([b"1"], timeout_s=0.05)
    bucket.allowed = True
    assert await log.append([b"2"]) == 2
    _, found = await DurableLog.open(bucket, "runs/0", clock=ManualClock(), ids=SystemIds())
    assert found.records == [b"1", b"2"]


async def test_an_owner_of_a_later_release_fences_like_any_other() -> None:
    """Its segment cannot be read here, but whose number it has taken is plain."""
    bucket = MemoryBucket()
    log = await opened(bucket)
    await log.append([b"1"])
    later, _ = await DurableLog.open(bucket, "runs/0", clock=ManualClock(), ids=SystemIds())
    await later.close()
    newest = max(bucket.objects)
    bucket.objects[newest] = bucket.objects[newest].replace(b"HRLOG\n\x01", b"HRLOG\n\x09")
    with pytest.raises(Fenced):
        await log.check_owner()
    with pytest.raises(Fenced):
        log.enqueue([b"2"])


async def test_too_much_is_refused_at_once() -> None:
    """One append over its limit is TooLarge; more waiting than the limit is Overloaded."""
    log = await opened(Full(), LogOptions(append_bytes=100, pending_bytes=150))
    with pytest.raises(TooLarge):
        log.enqueue([b"x" * 101])
    log.enqueue([b"x" * 90])
    await asyncio.sleep(0.01)
    log.enqueue([b"x" * 90])
    with pytest.raises(Overloaded):
        log.enqueue([b"x" * 90])


async def test_closing_writes_what_was_handed_over() -> None:
    """close waits for queued appends; later calls are refused."""
    bucket = MemoryBucket()
    log = await opened(bucket)
    future = log.enqueue([b"1"], linger_s=60)
    await log.close()
    assert await future == 1
    with pytest.raises(StorageUnavailable, match="closed"):
        log.enqueue([b"2"])


async def test_a_defect_below_the_log_is_told_to_all_who_wait() -> None:
    """An error that is none of the bucket's own stops the log: nobody waits for ever for a writer that is gone."""

    class Broken(MemoryBucket):
        async def create(self, key: str, data: bytes) -> None:
            if not key.endswith("1"):
                raise TypeError("the library changed")
            await super().create(key, data)

    log = await opened(Broken())
    waiting = [log.enqueue([b"1"]), log.enqueue([b"2"]), asyncio.ensure_future(log.flush())]
    for future in waiting:
        with pytest.raises(StorageError, match="TypeError: the library changed"):
            await future
    assert "TypeError" in (await log.wait_stopped()).message
    with pytest.raises(StorageError, match="TypeError"):
        log.enqueue([b"3"])


async def test_a_foreign_file_among_the_segments_does_not_stop_the_owner() -> None:
    """Snapshots are stored all the same; only the collection waits until the file has been moved away."""
    bucket = MemoryBucket()
    log = await opened(bucket)
    for round in range(3):
        if round == 1:
            bucket.objects["runs/0/wal/.DS_Store"] = b"?"
        await log.append([b"x"])
        await log.snapshot(b"state")
    assert (log.stats.snapshots, log.stats.collected) == (3, 0)
    del bucket.objects["runs/0/wal/.DS_Store"]
    await log.append([b"x"])
    await log.snapshot(b"state")
    assert log.stats.collected > 0


async def test_a_snapshot_must_be_of_a_known_position() -> None:
    """A position that the log has not reached, or that lies before its recovery, is a programming error."""
    bucket = MemoryBucket()
    log = await opened(bucket)
    await log.append([b"1"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        await log.snapshot(b"", position=2)


def test_lingering_appends_share_writes_and_urgent_ones_take_them_along() -> None:
    """At 500 lingering appends a second ten share a write, the first of which waits for the tenth and for the write."""

    async def scenario(loop: SimLoop) -> None:
        clock = LoopClock(loop)
        bucket = MemoryBucket(faults=Faults(random.Random(1), latency_s=(0.001, 0.001)), network=Context())
        log, _ = await DurableLog.open(bucket, "l", clock=clock, ids=SeededIds(clock, random.Random(2)))
        waits: list[float] = []

        async def submit() -> None:
            began = loop.time()
            await log.append([b"x"], linger_s=0.0185)
            waits.append(loop.time() - began)

        tasks = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(submit()))
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        assert log.stats.segments <= 0.101 * len(tasks)
        assert max(waits) < 0.0185 + 0.0025
        patient = log.enqueue([b"patient"], linger_s=10)
        began = loop.time()
        await log.append([b"urgent"])
        assert patient.done()
        assert loop.time() - began < 0.01

    simulate(scenario)


def test_an_idle_log_does_not_linger() -> None:
    """The first append after a pause is written at once, however long it might wait."""

    async def scenario(loop: SimLoop) -> None:
        clock = LoopClock(loop)
        bucket = MemoryBucket(faults=Faults(random.Random(1), latency_s=(0.001, 0.001)), network=Context())
        log, _ = await DurableLog.open(bucket, "l", clock=clock, ids=SeededIds(clock, random.Random(2)))
        await asyncio.sleep(1)
        began = loop.time()
        await log.append([b"x"], linger_s=0.5)
        assert loop.time() - began < 0.01

    simulate(scenario)


RECORDS = st.lists(st.binary(max_size=2000), max_size=20)


def segment(records: list[bytes]) -> Segment:
    return Segment(
        kind="records", log="l", seq=7, epoch=2, writer="w", first=3, previous="0" * 64, at=1.5, records=records
    )


@given(RECORDS, st.booleans())
def test_segments_come_back_as_they_were(records: list[bytes], compress: bool) -> None:
    """Decoding what was encoded gives the same segment, whatever its records, compressed or not."""
    assert decode_segment(encode_segment(segment(records), compress=compress), key="k") == segment(records)


@given(st.binary(max_size=5000), st.booleans())
def test_snapshots_come_back_as_they_were(body: bytes, compress: bool) -> None:
    """Decoding what was encoded gives the same snapshot."""
    snapshot = Snapshot(
        log="l", seq=7, epoch=2, writer="w", position=9, covered=8, previous="0" * 64, fences=(1, 5), at=1.5, body=body
    )
    assert decode_snapshot(encode_snapshot(snapshot, compress=compress), key="k") == snapshot


@given(RECORDS.filter(bool), st.data())
def test_any_damage_is_noticed(records: list[bytes], data: st.DataObject) -> None:
    """Cutting an object short anywhere, or changing any byte, is an error that names the object."""
    good = encode_segment(segment(records))
    place = data.draw(st.integers(0, len(good) - 1))
    for bad in (good[:place], good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :]):
        with pytest.raises((CorruptObject, FormatVersionUnsupported)) as caught:
            decode_segment(bad, key="wal/7")
        assert caught.value.details["key"] == "wal/7"


def test_a_later_format_is_named() -> None:
    """An object of another format version says both versions and is not called corrupt."""
    data = bytearray(encode_segment(segment([b"x"])))
    data[6] = 9
    with pytest.raises(FormatVersionUnsupported, match="log format 9"):
        decode_segment(bytes(data), key="wal/7")


def test_a_snapshot_is_no_segment() -> None:
    """An object of the wrong kind is named, in both directions."""
    snapshot = Snapshot(
        log="l", seq=7, epoch=2, writer="w", position=9, covered=8, previous="0" * 64, fences=(), at=1.5, body=b""
    )
    with pytest.raises(CorruptObject, match="not a log segment"):
        decode_segment(encode_snapshot(snapshot), key="k")
    with pytest.raises(CorruptObject, match="not a snapshot"):
        decode_snapshot(encode_segment(segment([])), key="k")
