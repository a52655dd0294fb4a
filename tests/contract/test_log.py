"""What the durable log promises over every bucket."""

from __future__ import annotations

import asyncio

import pytest

from cluster.clock import SystemClock, SystemIds
from cluster.errors import CorruptObject, Fenced
from cluster.log import DurableLog, LogOptions, LogReader, Recovered
from cluster.log.reading import segment_key, snapshot_key
from cluster.storage import Bucket

PREFIX = "runs/0"


async def own(bucket: Bucket, *, options: LogOptions | None = None) -> tuple[DurableLog, Recovered]:
    """Become the log's owner, as a fresh process would."""
    return await DurableLog.open(bucket, PREFIX, clock=SystemClock(), ids=SystemIds(), options=options)


async def test_acknowledged_records_come_back_in_order(bucket: Bucket) -> None:
    """After a crash (no close) the next owner reads every acknowledged record, in the order of the calls."""
    log, empty = await own(bucket)
    assert (empty.snapshot, empty.records, empty.epoch) == (None, [], 1)
    for number in range(5):
        assert await log.append([b"%d" % number, b"b"]) == 2 * number + 2
    await asyncio.gather(*(log.append([b"group %d" % number]) for number in range(100)))
    _, found = await own(bucket)
    expected = [record for number in range(5) for record in (b"%d" % number, b"b")]
    assert found.records == expected + [b"group %d" % number for number in range(100)]
    assert found.epoch == 2


async def test_concurrent_appends_share_writes(bucket: Bucket) -> None:
    """A hundred appends at once need a handful of objects, not a hundred."""
    log, _ = await own(bucket)
    await asyncio.gather(*(log.append([b"x"]) for _ in range(100)))
    assert log.stats.segments <= 3
    await log.close()


async def test_a_zombie_is_fenced_for_good(bucket: Bucket) -> None:
    """Once a new owner exists, the old one's writes raise Fenced, now and later, and leave no trace."""
    old, _ = await own(bucket)
    await old.append([b"1"])
    new, found = await own(bucket)
    assert found.records == [b"1"]
    with pytest.raises(Fenced):
        await old.append([b"zombie"])
    with pytest.raises(Fenced):
        await old.append([b"zombie again"])
    with pytest.raises(Fenced):
        await old.snapshot(b"zombie")
    assert isinstance(await old.wait_stopped(), Fenced)
    await new.append([b"2"])
    _, found = await own(bucket)
    assert found.records == [b"1", b"2"]


async def test_an_owner_can_ask_whether_it_still_is_one(bucket: Bucket) -> None:
    """check_owner passes for the owner and raises Fenced for the one before, without writing."""
    old, _ = await own(bucket)
    await old.check_owner()
    new, _ = await own(bucket)
    with pytest.raises(Fenced):
        await old.check_owner()
    await new.check_owner()


async def test_a_zombie_is_fenced_even_after_its_number_was_collected(bucket: Bucket) -> None:
    """An owner that slept while others snapshotted and collected still finds its next number taken."""
    old, _ = await own(bucket)
    await old.append([b"1"])
    new, _ = await own(bucket)
    for number in range(4):
        await new.append([b"%d" % number])
        await new.snapshot(b"state %d" % number)
    with pytest.raises(Fenced):
        await old.append([b"zombie"])
    _, found = await own(bucket)
    assert (found.snapshot, found.records) == (b"state 3", [])


async def test_snapshots_bound_replay_and_free_space(bucket: Bucket) -> None:
    """Recovery starts from the newest snapshot; segments before the one before it are gone, epoch segments stay."""
    log, _ = await own(bucket)
    for number in range(6):
        await log.append([b"%d" % number])
        if number % 2:
            await log.snapshot(b"up to %d" % number)
    await log.append([b"after"])
    _, found = await own(bucket)
    assert (found.snapshot, found.records) == (b"up to 5", [b"after"])
    numbers = [int(key.rpartition("/")[2]) for key in await bucket.list(f"{PREFIX}/wal/")]
    assert numbers == [1, 6, 7, 8, 9]
    assert len(await bucket.list(f"{PREFIX}/snap/")) == 2


async def test_a_snapshot_inside_a_segment_loses_and_repeats_nothing(bucket: Bucket) -> None:
    """A snapshot at a position in the middle of a group commit is followed by exactly the records after it."""
    log, _ = await own(bucket)
    ends = await asyncio.gather(*(log.append([b"%d" % number]) for number in range(10)))
    await log.snapshot(b"seven", position=ends[6])
    _, found = await own(bucket)
    assert found.snapshot == b"seven"
    assert found.records == [b"7", b"8", b"9"]


async def test_one_append_is_whole_or_absent(bucket: Bucket) -> None:
    """An append larger than a segment is still one object."""
    log, _ = await own(bucket, options=LogOptions(segment_bytes=100, compress=False))
    await asyncio.gather(*(log.append([b"x" * 60, b"y" * 60]) for _ in range(5)))
    assert log.stats.segments == 5
    history = await LogReader(bucket, PREFIX).read()
    assert [len(segment.records) for segment in history.segments] == [0, 2, 2, 2, 2, 2]


async def test_a_missing_segment_is_named(bucket: Bucket) -> None:
    """Recovery with a hole raises CorruptObject with the missing key, and claims nothing."""
    log, _ = await own(bucket)
    for number in range(5):
        await log.append([b"%d" % number])
    await bucket.delete(segment_key(PREFIX, 3))
    before = await bucket.list("")
    with pytest.raises(CorruptObject) as caught:
        await own(bucket)
    assert caught.value.details["key"] == segment_key(PREFIX, 3)
    assert await bucket.list("") == before


async def test_a_damaged_segment_is_named(bucket: Bucket) -> None:
    """One flipped bit anywhere raises CorruptObject with the key."""
    log, _ = await own(bucket)
    await log.append([b"precious"])
    key = segment_key(PREFIX, 2)
    good = await bucket.get(key)
    for offset in (0, 20, len(good) // 2, len(good) - 1):
        await bucket.put(key, good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        with pytest.raises(CorruptObject) as caught:
            await own(bucket)
        assert caught.value.details["key"] == key


async def test_a_foreign_segment_is_named(bucket: Bucket) -> None:
    """A valid segment of another log, or of this log's past, put in the place of one is noticed."""
    log, _ = await own(bucket)
    other, _ = await DurableLog.open(bucket, "runs/1", clock=SystemClock(), ids=SystemIds())
    for number in range(3):
        await log.append([b"%d" % number])
        await other.append([b"%d" % number])
    await bucket.put(segment_key(PREFIX, 3), await bucket.get(segment_key("runs/1", 3)))
    with pytest.raises(CorruptObject) as caught:
        await own(bucket)
    assert caught.value.details["key"] == segment_key(PREFIX, 3)
    await bucket.put(segment_key(PREFIX, 3), await bucket.get(segment_key(PREFIX, 2)))
    with pytest.raises(CorruptObject):
        await own(bucket)


async def test_a_damaged_snapshot_is_named_and_the_one_before_still_works(bucket: Bucket) -> None:
    """A corrupt newest snapshot is an error; removing it by hand recovers everything from the one before."""
    log, _ = await own(bucket)
    for number in range(3):
        await log.append([b"%d" % number])
        await log.snapshot(b"state %d" % number)
    await log.append([b"last"])
    newest = (await bucket.list(f"{PREFIX}/snap/"))[-1]
    await bucket.put(newest, (await bucket.get(newest))[:-1])
    with pytest.raises(CorruptObject) as caught:
        await own(bucket)
    assert caught.value.details["key"] == newest
    await bucket.delete(newest)
    _, found = await own(bucket)
    assert (found.snapshot, found.records) == (b"state 1", [b"2", b"last"])


async def test_a_stray_object_is_named(bucket: Bucket) -> None:
    """Something that is no segment among the segments is an error with its key."""
    await own(bucket)
    await bucket.put(f"{PREFIX}/wal/backup.tar", b"?")
    with pytest.raises(CorruptObject) as caught:
        await own(bucket)
    assert caught.value.details["key"] == f"{PREFIX}/wal/backup.tar"


async def test_a_reader_disturbs_nobody(bucket: Bucket) -> None:
    """A LogReader sees as much history as is left and the owner goes on."""
    log, _ = await own(bucket)
    for number in range(4):
        await log.append([b"%d" % number])
        await log.snapshot(b"state %d" % number)
    before = await bucket.list("")
    history = await LogReader(bucket, PREFIX).read()
    assert history.snapshot is not None
    assert (history.snapshot.body, history.records()) == (b"state 2", [b"3"])
    assert await bucket.list("") == before
    await log.append([b"more"])


async def test_without_collection_the_whole_history_stays(bucket: Bucket) -> None:
    """With collect=False a reader sees every record since the beginning in spite of snapshots."""
    log, _ = await own(bucket, options=LogOptions(collect=False))
    for number in range(4):
        await log.append([b"%d" % number])
        await log.snapshot(b"state %d" % number)
    history = await LogReader(bucket, PREFIX).read()
    assert history.snapshot is None
    assert history.records() == [b"0", b"1", b"2", b"3"]
    assert snapshot_key(PREFIX, 2) in await bucket.list(f"{PREFIX}/snap/")


async def test_two_openers_at_once_leave_one_owner(bucket: Bucket) -> None:
    """Of many processes that open one log at once, exactly one can go on writing, with the highest epoch."""
    opened = await asyncio.gather(*(own(bucket) for _ in range(5)))
    logs = [log for log, _ in opened]
    assert len({log.epoch for log in logs}) == 5

    async def write(log: DurableLog) -> int | None:
        try:
            await log.append([b"%d" % log.epoch])
        except Fenced:
            return None
        return log.epoch

    winners = [epoch for epoch in await asyncio.gather(*map(write, logs)) if epoch is not None]
    assert winners == [max(log.epoch for log in logs)]
    _, found = await own(bucket)
    assert found.records == [b"%d" % winners[0]]
