"""Reading old history: what collection, late writes and lost races leave behind is not taken for damage."""

from __future__ import annotations

import pytest

from cluster.clock import ManualClock, SystemIds
from cluster.errors import CorruptObject, ObjectNotFound
from cluster.log import DurableLog, LogOptions, LogReader
from cluster.log.codec import Segment, encode_segment
from cluster.log.reading import segment_key, snapshot_key
from cluster.storage.testing import MemoryBucket

PREFIX = "runs/0"


async def own(bucket: MemoryBucket, *, collect: bool = True) -> DurableLog:
    options = LogOptions(collect=collect)
    log, _ = await DurableLog.open(bucket, PREFIX, clock=ManualClock(), ids=SystemIds(), options=options)
    return log


async def busy(bucket: MemoryBucket) -> dict[str, bytes]:
    """A log that has collected segments 2 to 9; returns what was there before each collection."""
    ever: dict[str, bytes] = {}
    log = await own(bucket)
    for number in range(12):
        await log.append([b"%d" % number])
        ever |= bucket.objects
        if number % 4 == 3:
            await log.snapshot(b"state %d" % number)
    await log.close()
    return ever


@pytest.mark.parametrize("late", [[3], [3, 4], [9], [8, 9]])
async def test_a_late_write_after_collection_is_no_hole(late: list[int]) -> None:
    """A dead owner's repeated write lands where its segment had been collected: nothing is missing, nor read twice."""
    bucket = MemoryBucket()
    ever = await busy(bucket)
    for seq in late:
        key = segment_key(PREFIX, seq)
        assert key not in bucket.objects
        bucket.objects[key] = ever[key]
    history = await LogReader(bucket, PREFIX).read()
    assert history.snapshot is not None
    assert history.snapshot.body == b"state 7"
    assert history.records() == [b"8", b"9", b"10", b"11"]


@pytest.mark.parametrize("seq", [10, 11, 12])
async def test_a_hole_after_the_second_newest_snapshot_is_damage(seq: int) -> None:
    """What no collection can have taken is named, although the newest snapshot covers it."""
    bucket = MemoryBucket()
    await busy(bucket)
    key = segment_key(PREFIX, seq)
    del bucket.objects[key]
    with pytest.raises(CorruptObject, match=key):
        await LogReader(bucket, PREFIX).read()


async def test_a_stray_epoch_of_a_lost_race_is_passed_over() -> None:
    """An opener that slept wrote its epoch where segment 2 had been collected; it closes the gap to segment 1."""
    bucket = MemoryBucket()
    log = await own(bucket)
    await log.append([b"0"])
    await log.snapshot(b"state 0")
    await log.append([b"1"])
    await log.snapshot(b"state 1")
    await log.append([b"2"])
    await log.close()
    key = segment_key(PREFIX, 2)
    assert key not in bucket.objects
    first = (await LogReader(bucket, PREFIX).read()).log
    assert first is not None
    stray = Segment(kind="epoch", log=first, seq=2, epoch=2, writer="slow", first=0, previous="x" * 32, at=0.0)
    bucket.objects[key] = encode_segment(stray)
    history = await LogReader(bucket, PREFIX).read()
    assert history.snapshot is not None
    assert (history.snapshot.body, history.records()) == (b"state 0", [b"1", b"2"])


async def test_a_foreign_segment_in_old_history_is_still_named() -> None:
    """Only an epoch that the snapshot does not know is a stray: anything else that does not fit is damage."""
    bucket = MemoryBucket()
    log = await own(bucket, collect=False)
    for number in range(3):
        await log.append([b"%d" % number])
    await log.snapshot(b"state")
    await log.close()
    key = segment_key(PREFIX, 3)
    bucket.objects[key] = bucket.objects[segment_key(PREFIX, 2)]
    with pytest.raises(CorruptObject, match=key):
        await LogReader(bucket, PREFIX).read()


class Collecting(MemoryBucket):
    """The live owner removes what a snapshot covers between a reader's look at the list and its reading."""

    armed = True

    async def get(self, key: str) -> bytes:
        if self.armed and "/wal/" in key:
            self.armed = False
            for seq in range(2, 6):
                self.objects.pop(segment_key(PREFIX, seq), None)
            raise ObjectNotFound(f"no object {key}", details={"key": segment_key(PREFIX, 2)})
        return await super().get(key)


async def test_an_audit_of_a_log_that_is_being_collected_begins_again() -> None:
    """Segments that vanish while they are read are no damage, also when no newer snapshot has come meanwhile."""
    bucket = MemoryBucket()
    log = await own(bucket, collect=False)
    for number in range(6):
        await log.append([b"%d" % number])
        if number % 3:
            await log.snapshot(b"state %d" % number)
    await log.close()
    history = await LogReader(Collecting(bucket.objects), PREFIX).read()
    assert history.snapshot is not None
    assert history.snapshot.body == b"state 4"
    assert history.records() == [b"5"]


class Interrupted(MemoryBucket):
    """Dies at its first removal of a segment."""

    async def delete(self, key: str) -> None:
        if "/wal/" in key:
            raise KeyboardInterrupt
        await super().delete(key)


async def test_an_interrupted_collection_leaves_no_snapshot_without_its_segments() -> None:
    """Snapshots go before the segments: whatever is left can be read from its oldest snapshot on."""
    bucket = Interrupted()
    log = await own(bucket)
    for number in range(2):
        await log.append([b"%d" % number])
        await log.snapshot(b"state %d" % number) if number == 0 else None
    with pytest.raises(KeyboardInterrupt):
        await log.snapshot(b"state 1")
    await log.append([b"2"])
    with pytest.raises(KeyboardInterrupt):
        await log.snapshot(b"state 2")
    assert snapshot_key(PREFIX, 2) not in bucket.objects
    assert (await LogReader(bucket, PREFIX).read()).records() == [b"0", b"1", b"2"]
