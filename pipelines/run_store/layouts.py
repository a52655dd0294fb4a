"""The history of `state.shards` in the bucket: one object per layout under `runs/layouts/`, never written over.

Only who was configured by a person writes (`settle_layouts`); a process that Ray restarts may have an old
configuration, and reads.
"""

from __future__ import annotations

import orjson

from cluster.errors import AlreadyExists, CorruptObject, ObjectNotFound
from cluster.layout import Layout, Layouts
from cluster.storage import Bucket

__all__ = ["LAYOUTS", "read_layouts", "settle_layouts"]

LAYOUTS = "runs/layouts/"
MAX_SHARDS = 64


async def read_layouts(bucket: Bucket) -> Layouts | None:
    """All layouts so far, None for a bucket without any. Raises `CorruptObject` naming an object that is none."""
    found = []
    for number, key in enumerate(await bucket.list(LAYOUTS), start=1):
        if key != _key(number):
            raise CorruptObject(
                f"{bucket.url}/{_key(number)} is missing: without it nobody knows which shard an Idempotency-Key "
                "belonged to. Restore it from a copy of the bucket; or, if no submit of the last day is repeated, "
                f"remove all objects under {LAYOUTS}",
                details={"key": _key(number)},
            )
        try:
            found.append(Layout.from_dict(orjson.loads(await bucket.get(key))))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise CorruptObject(f"{bucket.url}/{key} is not a layout of shards", details={"key": key}) from None
    return Layouts.of(found) if found else None


async def settle_layouts(bucket: Bucket, shards: int, *, now: float) -> Layouts:
    """All layouts, of which the newest has so many shards: written if it differs. Any number of callers that want the
    same may come at once."""
    while True:
        layouts = await read_layouts(bucket)
        known = layouts.known if layouts is not None else ()
        if known and known[-1].shards == shards:
            return Layouts.of(known)
        wanted = [Layout(shards=shards, since=now)]
        if not known:
            wanted = await _of_earlier_releases(bucket) or wanted
        try:
            await bucket.create(_key(len(known) + 1), orjson.dumps(wanted[0].to_dict()))
        except AlreadyExists:
            continue  # whoever was faster wants the same; or the answer of our own write was lost


async def _of_earlier_releases(bucket: Bucket) -> list[Layout]:
    """Before layouts were written down every shard had its configuration, and the newest stands with shard 0. A shard
    that it does not count is older still."""
    there: dict[int, int] = {}
    for shard in range(MAX_SHARDS):
        try:
            config = orjson.loads(await bucket.get(f"runs/{shard}/config.json"))
        except ObjectNotFound:
            continue
        there[shard] = int((config.get("state") or {}).get("shards") or 1)
    if not there:
        return []
    return [Layout(shards=max(max(there) + 1, there.get(0, 1)), since=0.0)]


def _key(number: int) -> str:
    return f"{LAYOUTS}{number:06d}"
