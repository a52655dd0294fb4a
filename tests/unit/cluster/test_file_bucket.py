"""The file bucket's own promises: nothing half-written shows, a full disk is said plainly, crashes leave no litter."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster.errors import AlreadyExists, StorageError, StorageUnavailable, UnsafeBucket
from cluster.storage import open_bucket
from cluster.storage.file_bucket import FileBucket


class Broken(FileBucket):
    """A file system whose next write fails with this error number."""

    number = 0

    def _temporary(self) -> tuple[int, str]:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super()._temporary()


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, StorageError, "no space left"),
        (errno.EDQUOT, StorageError, "no space left"),
        (errno.EIO, StorageUnavailable, "Input/output error"),
        (errno.EROFS, StorageError, "Read-only"),
    ],
)
async def test_disk_errors_are_said_plainly(tmp_path: Path, number: int, kind: type[StorageError], text: str) -> None:
    """Each errno becomes the storage error that says whether to try again, naming the object."""
    bucket = Broken(tmp_path)
    bucket.number = number
    with pytest.raises(StorageError, match=text) as caught:
        await bucket.create("a/b", b"x")
    assert type(caught.value) is kind
    assert caught.value.details["key"] == "a/b"
    with pytest.raises(StorageError, match=text):
        await bucket.put("a/b", b"x")
    bucket.number = 0
    await bucket.create("a/b", b"x")
    await bucket.close()


async def test_what_is_told_to_be_there_is_durably_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create that failed after its object got its name is repeated: it learns that the object exists, and relies on
    that, so the name is on the disk by then."""
    bucket = FileBucket(tmp_path)
    await bucket.create("a/0", b"")
    synced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith("/a") and "failed" not in synced:
            synced.append("failed")
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)
        synced.append(name)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageUnavailable):
        await bucket.create("a/1", b"x")
    with pytest.raises(AlreadyExists):
        await bucket.create("a/1", b"x")
    assert synced[-1] == str(tmp_path / "a")


async def test_no_litter_and_old_litter_is_swept(tmp_path: Path) -> None:
    """Temporary files go after every write; those that a crash left are removed a day later."""
    bucket = FileBucket(tmp_path)
    old, new = tmp_path / ".tmp" / "1-1-old", tmp_path / ".tmp" / "1-2-new"
    old.parent.mkdir()
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    await bucket.put("k", b"v")
    await bucket.create("k2", b"v")
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["1-2-new"]
    assert await bucket.list("") == ["k", "k2"]
    with pytest.raises(StorageError, match="belongs to the bucket"):
        await bucket.put(".tmp/x", b"")
    await bucket.close()


async def test_without_hard_links_the_bucket_is_unsafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no link(2) is refused with the reason."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    bucket = FileBucket(tmp_path)
    with pytest.raises(UnsafeBucket, match="hard links"):
        await bucket.create("k", b"v")
    await bucket.close()


async def test_a_removed_folder_is_made_again(tmp_path: Path) -> None:
    """A folder that somebody deleted under a running bucket fails once and is made again on the next try."""
    bucket = FileBucket(tmp_path / "bucket")
    await bucket.create("d/1", b"x")
    (tmp_path / "bucket" / "d" / "1").unlink()
    (tmp_path / "bucket" / "d").rmdir()
    with pytest.raises(StorageError):
        await bucket.create("d/1", b"x")
    await bucket.create("d/1", b"x")
    assert await bucket.get("d/1") == b"x"
    await bucket.close()


async def test_a_closed_bucket_says_so(tmp_path: Path) -> None:
    """A call after close is StorageUnavailable, not a traceback from a thread pool."""
    bucket = FileBucket(tmp_path)
    await bucket.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        await bucket.get("k")


@pytest.mark.parametrize("url", ["ftp://x", "file://", "s3://", "bucket", "s3:bucket"])
def test_another_url_is_refused(url: str) -> None:
    """What is neither file:// nor s3:// is an error that shows both forms."""
    from cluster.config.models import StorageConfig
    from cluster.errors import InvalidConfig

    with pytest.raises(InvalidConfig, match="file://PATH or s3://"):
        open_bucket(StorageConfig(url=url))
