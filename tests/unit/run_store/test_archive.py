"""The archive of finished runs: found by id, listed newest first, damage named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import ManualClock, SystemIds
from cluster.errors import CorruptObject, FormatVersionUnsupported
from cluster.storage.testing import MemoryBucket
from pipelines.run_store.archive import Archive, ArchivedRun
from pipelines.run_store.runids import created_ms, order_key, ulid_floor


@dataclass
class CountingIds:
    """ULIDs whose time is set by hand and whose random part counts up."""

    ms: int = 1_700_000_000_000
    count: int = 0

    def ulid(self) -> str:
        self.count += 1
        return ulid_floor(self.ms)[:10] + f"{self.count:016d}"


def run(ms: int, n: int) -> ArchivedRun:
    identifier = f"run-0-{ulid_floor(ms)[:10]}{n:016d}"
    return ArchivedRun(summary={"id": identifier, "workflow": "w", "state": "SUCCESS"}, record=f"r{n}".encode())


async def listed(archive: Archive, *, before: str | None = None, since: str = "") -> list[str]:
    return [row["id"] async for row in archive.rows(before=before, since=since)]


def test_a_ulid_tells_its_time() -> None:
    """The time in an id is the clock's, in milliseconds, and the floor of a time is below all of its ids."""
    clock = ManualClock(time_s=1_700_000_000.123)
    ulid = SystemIds(clock).ulid()
    assert created_ms(ulid) == 1_700_000_000_123
    assert ulid_floor(1_700_000_000_123) <= ulid < ulid_floor(1_700_000_000_124)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 4 * 3_600_000), max_size=12), max_size=6),
    since=st.integers(0, 4 * 3_600_000),
)
async def test_every_run_is_found_and_listed_once(batches: list[list[int]], since: int) -> None:
    """Whatever the order in which runs end, each is found by id, and the list is sorted, complete and bounded."""
    base = 1_700_000_000_000
    archive = Archive(bucket=MemoryBucket(), prefix="runs/0", ids=CountingIds(), cache=2)
    everything: list[ArchivedRun] = []
    for batch in batches:
        members = [run(base + offset, len(everything) + n) for n, offset in enumerate(batch)]
        everything.extend(members)
        archive.add(await archive.write(members))
    assert len(archive) == len(everything)
    for member in everything:
        assert await archive.find(member.summary["id"]) == member.record
    floor = ulid_floor(base + since)
    expected = sorted(
        (m.summary["id"] for m in everything if order_key(m.summary["id"]) >= floor), key=order_key, reverse=True
    )
    assert await listed(archive, since=floor) == expected
    if expected:
        middle = order_key(expected[len(expected) // 2])
        assert await listed(archive, before=middle, since=floor) == expected[len(expected) // 2 + 1 :]


async def test_the_last_end_of_a_resumed_run_counts() -> None:
    """A run that was archived twice (failed, resumed, ended again) is shown once, as it last ended."""
    archive = Archive(bucket=MemoryBucket(), prefix="runs/0", ids=CountingIds())
    first = run(1_700_000_000_000, 1)
    again = ArchivedRun(summary={**first.summary, "state": "FAILED"}, record=b"again")
    archive.add(await archive.write([again]))
    archive.add(await archive.write([first, run(1_700_000_000_000, 2)]))
    assert await archive.find(first.summary["id"]) == b"r1"
    rows = [row async for row in archive.rows(before=None, since="")]
    assert [row["state"] for row in rows] == ["SUCCESS", "SUCCESS"]


async def test_only_what_was_logged_counts() -> None:
    """An object that was written but never logged is not listed, and is removed by the next owner."""
    bucket = MemoryBucket()
    archive = Archive(bucket=bucket, prefix="runs/0", ids=CountingIds())
    archive.add(await archive.write([run(1_700_000_000_000, 1)]))
    await archive.write([run(1_700_000_000_000, 2)])
    successor = Archive(bucket=bucket, prefix="runs/0", ids=CountingIds(count=100))
    successor.restore(archive.to_state())
    successor.epoch = 1
    assert await successor.collect_orphans() == 1
    assert len(await listed(successor)) == 1
    assert await successor.find(run(1_700_000_000_000, 1).summary["id"]) == b"r1"


async def test_a_zombie_leaves_a_newer_owners_objects_alone() -> None:
    """An owner that was replaced without knowing it does not take what its successor wrote for a crash's leftovers."""
    bucket = MemoryBucket()
    zombie = Archive(bucket=bucket, prefix="runs/0", ids=CountingIds())
    successor = Archive(bucket=bucket, prefix="runs/0", ids=CountingIds(count=100))
    zombie.epoch, successor.epoch = 1, 2
    successor.add(await successor.write([run(1_700_000_000_000, 1)]))
    assert await zombie.collect_orphans() == 0
    assert len(await listed(successor)) == 1


@pytest.mark.parametrize("place", [0, 20, -1])
async def test_damage_is_named(place: int) -> None:
    """A changed byte anywhere in an object is an error that names the object."""
    bucket = MemoryBucket()
    archive = Archive(bucket=bucket, prefix="runs/0", ids=CountingIds())
    segments = await archive.write([run(1_700_000_000_000, 1)])
    archive.add(segments)
    data = bytearray(bucket.objects[segments[0].key])
    data[place] ^= 0xFF
    bucket.objects[segments[0].key] = bytes(data)
    with pytest.raises((CorruptObject, FormatVersionUnsupported)) as caught:
        await archive.find(run(1_700_000_000_000, 1).summary["id"])
    assert caught.value.details["key"] == segments[0].key
