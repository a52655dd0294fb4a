"""Blob references and the blocking side of the blob store; what buckets promise about blobs is in tests/contract."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidInput, ObjectNotFound
from cluster.storage import BlobRef, BlobStore, BlockingBlobs
from cluster.storage.file_bucket import FileBucket
from cluster.storage.testing import MemoryBucket

REFS = st.builds(
    BlobRef,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 1 << 50),
    media_type=st.sampled_from(["text/plain", "image/png", "application/octet-stream"]),
    name=st.none() | st.text(max_size=20),
    spilled=st.booleans(),
)


@given(REFS)
def test_references_survive_json(ref: BlobRef) -> None:
    """What is written as JSON is read back equal."""
    assert BlobRef.parse(ref.to_json()) == ref


@given(st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()))
def test_other_values_are_no_references(value: object) -> None:
    """Values without the key `$blob` are left alone."""
    if not (isinstance(value, dict) and "$blob" in value):
        assert BlobRef.parse(value) is None


@pytest.mark.parametrize(
    "value",
    [
        {"$blob": "../../etc/passwd", "size": 1},
        {"$blob": "A" * 64, "size": 1},
        {"$blob": "a" * 64},
        {"$blob": "a" * 64, "size": -1},
        {"$blob": "a" * 64, "size": True},
        {"$blob": "a" * 64, "size": 1, "name": 7},
    ],
)
def test_a_forged_reference_is_refused(value: dict[str, object]) -> None:
    """A `$blob` that is not a SHA-256 with a size never becomes a key of the bucket."""
    with pytest.raises(InvalidInput):
        BlobRef.parse(value)


def test_workers_use_it_from_plain_code_and_threads(tmp_path: Path) -> None:
    """The blocking store puts, gets and streams files, from several threads at once."""
    with BlockingBlobs(FileBucket(tmp_path / "bucket")) as blobs:
        with ThreadPoolExecutor(8) as pool:
            refs = list(pool.map(lambda n: blobs.put_json({"n": n % 3}), range(24)))
            assert [blobs.get_json(ref)["n"] for ref in refs] == [n % 3 for n in range(24)]
        assert len({ref.key for ref in refs}) == 3
        (tmp_path / "in.bin").write_bytes(b"x" * 1000)
        ref = blobs.put_file(tmp_path / "in.bin", media_type="image/png")
        assert (ref.name, ref.size, ref.media_type) == ("in.bin", 1000, "image/png")
        blobs.get_file(ref, tmp_path / "out.bin")
        assert (tmp_path / "out.bin").read_bytes() == b"x" * 1000
        with pytest.raises(ObjectNotFound):
            blobs.get(BlobRef(sha256="0" * 64, size=1))
        with pytest.raises(InvalidInput, match=r"nothing\.bin"):
            blobs.put_file(tmp_path / "nothing.bin")
    blobs.close()  # a second time is harmless


def test_files_pass_through_without_being_held(tmp_path: Path) -> None:
    """A file of 64 MiB goes up and down with a few MiB of memory."""
    source = tmp_path / "big"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    with BlockingBlobs(FileBucket(tmp_path / "bucket")) as blobs:
        tracemalloc.start()
        ref = blobs.put_file(source)
        blobs.get_file(ref, tmp_path / "copy")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 << 20
    assert (tmp_path / "copy").stat().st_size == 64 << 20


async def test_a_large_blob_is_sent_once() -> None:
    """Storing the same large value again asks for its size and sends nothing."""
    bucket = MemoryBucket()
    blobs = BlobStore(bucket)
    await blobs.put(b"x" * (1 << 20))
    await blobs.put(b"x" * (1 << 20))
    assert (bucket.calls["create"], bucket.calls["put"]) == (1, 0)
