"""The history of `state.shards` in the bucket: one story, whoever writes it."""

from __future__ import annotations

import asyncio
import random

import orjson
import pytest

from cluster.errors import CorruptObject, LayoutChanged, StorageUnavailable, Unavailable
from cluster.layout import Layout, Layouts
from cluster.names import shard_of_key
from cluster.storage.testing import Faults, MemoryBucket
from pipelines.run_store.layouts import LAYOUTS, read_layouts, settle_layouts
from pipelines.run_store.testing import StoreFactory, wait_ended

WORKFLOW = "workflow: {name: w, steps: [{id: a, type: python_script}]}"


async def test_a_new_bucket_has_the_configured_layout() -> None:
    """And the same configuration again adds nothing."""
    bucket = MemoryBucket()
    assert await read_layouts(bucket) is None
    first = await settle_layouts(bucket, 2, now=10.0)
    assert first.known == (Layout(shards=2, since=10.0),)
    assert await settle_layouts(bucket, 2, now=20.0) == first == await read_layouts(bucket)


async def test_all_shards_that_start_at_once_write_one_history() -> None:
    """Also where answers are lost."""
    bucket = MemoryBucket(faults=Faults(random.Random(3), latency_s=(0.0, 0.001), lost_answer=0.2))

    for version, shards in enumerate([3, 4, 3], start=1):
        found = await asyncio.gather(*(_patiently(bucket, shards) for _ in range(5)))
        assert {layouts.version for layouts in found} == {version}
        assert {layouts.shards for layouts in found} == {shards}


async def _patiently(bucket: MemoryBucket, shards: int) -> Layouts:
    while True:
        try:
            return await settle_layouts(bucket, shards, now=1.0)
        except StorageUnavailable:
            continue


async def test_the_layout_of_an_earlier_release_is_found() -> None:
    """Its shards kept their configuration: the number of shard 0, and shards that it does not count."""
    bucket = MemoryBucket()
    for shard, count in enumerate((2, 2, 3)):
        await bucket.put(f"runs/{shard}/config.json", orjson.dumps({"state": {"shards": count}}))
    layouts = await settle_layouts(bucket, 5, now=7.0)
    assert layouts.known == (Layout(shards=3, since=0.0), Layout(shards=5, since=7.0))


async def test_a_lost_or_foreign_layout_is_named() -> None:
    """Nobody guesses where keys belonged."""
    bucket = MemoryBucket()
    for shards in (1, 2, 3):
        await settle_layouts(bucket, shards, now=1.0)
    await bucket.put(f"{LAYOUTS}000003", b"{}")
    with pytest.raises(CorruptObject, match="000003 is not a layout"):
        await read_layouts(bucket)
    await bucket.delete(f"{LAYOUTS}000002")
    with pytest.raises(CorruptObject, match="000002 is missing"):
        await read_layouts(bucket)


async def test_a_shard_takes_no_new_key_from_who_counts_other_shards() -> None:
    """A sender of before is told the new layout, one that is ahead comes again; known keys are answered to both."""
    layouts = Layouts.of([Layout(shards=1, since=0.0), Layout(shards=2, since=1.0)])
    key = next(key for key in map(str, range(50)) if shard_of_key(f":{key}", 2) == 0)
    async with StoreFactory(layouts=layouts).running() as store:
        await store.register({"workflow": WORKFLOW})
        request = {"workflow": "w", "idempotency_key": key}
        with pytest.raises(LayoutChanged) as told:
            await store.submit({**request, "layout": 1})
        assert Layouts.from_wire(told.value.details) == layouts
        with pytest.raises(Unavailable, match="has not heard"):
            await store.submit({**request, "layout": 3})
        with pytest.raises(Unavailable, match="has not heard"):
            await store.repeated({**request, "layout": 3})
        assert await store.repeated({**request, "layout": 2}) is None
        run = await store.submit({**request, "layout": 2})
        for version in (1, 2, 3):
            assert (await store.submit({**request, "layout": version}))["id"] == run["id"]
        again = await store.repeated({**request, "layout": 2})
        assert again is not None
        assert (again["id"], again["created"]) == (run["id"], False)


async def test_definitions_are_taken_over_by_a_new_shard() -> None:
    """All versions, with the newest of a name as the newest; what is known by name stays as it is."""
    async with StoreFactory().running() as old, StoreFactory(shard=1).running() as new:
        first = await old.register({"workflow": WORKFLOW})
        second = await old.register({"workflow": WORKFLOW.replace("id: a", "id: b")})
        await old.register({"workflow": WORKFLOW.replace("name: w", "name: other")})
        await old.register({"workflow": WORKFLOW})
        assert await new.take_definitions(await old.definitions()) == 3
        assert await new.workflows() == await old.workflows()
        for digest in (first["digest"], second["digest"]):
            run = await new.submit({"workflow": "w", "version": digest})
            await wait_ended(new, run["id"])
        await new.register({"workflow": WORKFLOW.replace("id: a", "id: c")})
        assert await new.take_definitions(await old.definitions()) == 0
