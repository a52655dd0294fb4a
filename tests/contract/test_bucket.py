"""What every bucket promises."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from cluster.errors import AlreadyExists, CorruptObject, FormatVersionUnsupported, InvalidInput, ObjectNotFound
from cluster.storage import BlobRef, BlobStore, Bucket
from cluster.storage.probe import MARKER, check_bucket, read_format


async def test_what_was_put_is_read_back(bucket: Bucket) -> None:
    """Put then get gives the same bytes, and a second put replaces them."""
    await bucket.put("a/b/c", b"one")
    await bucket.put("a/b/c", b"two \x00\xff")
    assert await bucket.get("a/b/c") == b"two \x00\xff"
    assert await bucket.size("a/b/c") == 6


async def test_an_absent_object_is_named(bucket: Bucket) -> None:
    """Reading what is not there raises ObjectNotFound with the key, and deleting it is no error."""
    with pytest.raises(ObjectNotFound) as caught:
        await bucket.get("no/such")
    assert caught.value.details["key"] == "no/such"
    with pytest.raises(ObjectNotFound):
        await bucket.size("no/such")
    await bucket.delete("no/such")


async def test_create_does_not_overwrite(bucket: Bucket) -> None:
    """Creating an existing key raises AlreadyExists and leaves the first bytes."""
    await bucket.create("k", b"first")
    with pytest.raises(AlreadyExists):
        await bucket.create("k", b"second")
    assert await bucket.get("k") == b"first"


async def test_of_racing_creators_one_wins(bucket: Bucket) -> None:
    """Of many creators of one key exactly one is told that it won, and its bytes stand."""

    async def create(number: int) -> int | None:
        try:
            await bucket.create("race", b"writer %d" % number)
        except AlreadyExists:
            return None
        return number

    winners = [number for number in await asyncio.gather(*map(create, range(16))) if number is not None]
    assert len(winners) == 1
    assert await bucket.get("race") == b"writer %d" % winners[0]


async def test_lists_are_sorted_and_start_after(bucket: Bucket) -> None:
    """A list holds exactly the keys with the prefix, in order, after the given one."""
    keys = [f"log/{number:04d}" for number in (3, 1, 20, 11)] + ["log2/1", "lo", "log/sub/x"]
    for key in keys:
        await bucket.put(key, b"x")
    assert await bucket.list("log/") == ["log/0001", "log/0003", "log/0011", "log/0020", "log/sub/x"]
    assert await bucket.list("log/", start_after="log/0003") == ["log/0011", "log/0020", "log/sub/x"]
    assert await bucket.list("log/00") == ["log/0001", "log/0003", "log/0011", "log/0020"]
    assert await bucket.list("") == sorted(keys)
    assert await bucket.list("none/") == []


async def test_a_list_of_more_than_one_page_is_whole(bucket: Bucket) -> None:
    """More keys than S3 gives in one answer (1,000) are all listed."""
    keys = [f"many/{number:05d}" for number in range(1100)]
    gate = asyncio.Semaphore(16)

    async def put(key: str) -> None:
        async with gate:
            await bucket.put(key, b"")

    await asyncio.gather(*map(put, keys))
    assert await bucket.list("many/") == keys
    assert await bucket.list("many/", start_after=keys[49]) == keys[50:]


async def test_deleted_objects_are_gone(bucket: Bucket) -> None:
    """After delete an object is neither listed nor read, and can be created again."""
    await bucket.create("d/1", b"x")
    await bucket.delete("d/1")
    assert await bucket.list("d/") == []
    await bucket.create("d/1", b"y")
    assert await bucket.get("d/1") == b"y"


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a/"])
async def test_keys_stay_inside_the_bucket(bucket: Bucket, key: str) -> None:
    """A key that is not a plain relative path is refused."""
    with pytest.raises(InvalidInput):
        await bucket.put(key, b"")


async def test_files_travel_whole(bucket: Bucket, tmp_path: Path) -> None:
    """A file larger than one part goes up and comes down unchanged, and so does an empty one."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 33 + b"tail")
    await bucket.upload("files/big", source)
    await bucket.download("files/big", target)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    source.write_bytes(b"")
    await bucket.upload("files/empty", source)
    await bucket.download("files/empty", target)
    assert target.read_bytes() == b""


async def test_a_safe_bucket_passes_the_probe_again_and_again(bucket: Bucket) -> None:
    """The probe accepts every bucket that headrace ships, marks it once, and leaves nothing else behind."""
    await check_bucket(bucket)
    await check_bucket(bucket)
    assert await read_format(bucket) == 1
    assert await bucket.list("") == [MARKER]


async def test_another_format_version_is_refused_untouched(bucket: Bucket) -> None:
    """A bucket of another format version is refused with both versions named, and nothing is written."""
    await bucket.put(MARKER, b'{"product": "headrace", "format": 99, "added_later": true}')
    with pytest.raises(FormatVersionUnsupported, match="format 99"):
        await check_bucket(bucket)
    assert await bucket.list("") == [MARKER]


async def test_another_programs_marker_is_refused(bucket: Bucket) -> None:
    """A marker that is not ours is named, not overwritten."""
    await bucket.put(MARKER, b"hello")
    with pytest.raises(CorruptObject, match=r"headrace\.json"):
        await check_bucket(bucket)
    assert await bucket.get(MARKER) == b"hello"


async def test_blobs_are_stored_once_and_checked(bucket: Bucket, tmp_path: Path) -> None:
    """Equal bytes give one object; damaged bytes raise CorruptObject with the key, by value and by file."""
    blobs = BlobStore(bucket)
    one = await blobs.put(b"x" * 300_000, name="one.txt", media_type="text/plain")
    two = await blobs.put(b"x" * 300_000)
    assert one.key == two.key
    assert await bucket.list("blobs/") == [one.key]
    assert await blobs.get(BlobRef.parse(one.to_json()) or two) == b"x" * 300_000
    file = tmp_path / "value.bin"
    file.write_bytes(b"x" * 300_000)
    assert (await blobs.put_file(file)).sha256 == one.sha256
    await blobs.get_file(one, tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == file.read_bytes()
    await bucket.put(one.key, b"y" * 300_000)
    with pytest.raises(CorruptObject) as caught:
        await blobs.get(one)
    assert caught.value.details["key"] == one.key
    with pytest.raises(CorruptObject):
        await blobs.get_file(one, tmp_path / "damaged.bin")
    assert not (tmp_path / "damaged.bin").exists()
    assert sorted(path.name for path in tmp_path.glob(".blob-*")) == []
