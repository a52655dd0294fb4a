"""A bucket in a folder of a POSIX file system: `link(2)` is create-if-absent, fsync is durability."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cluster.errors import (
    AlreadyExists,
    HeadraceError,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    UnsafeBucket,
)
from cluster.storage.port import check_key

__all__ = ["FileBucket"]

T = TypeVar("T")
_Keys = list[str]

_TEMPORARY = ".tmp"
"""Folder of half-written files, under the root so that link and rename stay within one file system."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_MAY_PASS = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.EINTR,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FORGOTTEN_S = 86400.0
"""A temporary file older than this was left by a crash: nothing is written for a whole day."""
_counter = itertools.count()


class FileBucket:
    """Objects as files under `root`, which is made when it is missing. Blocking work runs in the bucket's own threads.

    A created object is complete and on the disk before its name appears, and its name is on the disk before `create`
    returns, so a crash at any instant leaves either the whole object or nothing.
    """

    def __init__(self, root: Path, *, threads: int = 16):
        self._root = root.absolute()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bucket")
        self._folders: set[Path] = set()
        self._swept = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    async def get(self, key: str) -> bytes:
        return await self._run(lambda: self._path(key).read_bytes(), key)

    async def create(self, key: str, data: bytes) -> None:
        await self._run(lambda: self._create(self._path(key), data), key)

    async def put(self, key: str, data: bytes) -> None:
        await self._run(lambda: self._replace(self._path(key), lambda descriptor: _write(descriptor, data)), key)

    async def delete(self, key: str, *, once: bool = False) -> None:
        await self._run(lambda: self._path(key).unlink(missing_ok=True), key)

    async def list(self, prefix: str, *, start_after: str = "") -> list[str]:
        return await self._run(lambda: self._find(prefix, start_after), prefix)

    async def size(self, key: str) -> int:
        return await self._run(lambda: self._path(key).stat().st_size, key)

    async def modified(self, key: str) -> float:
        return await self._run(lambda: self._path(key).stat().st_mtime, key)

    async def upload(self, key: str, path: Path) -> None:
        def copy(descriptor: int) -> None:
            with path.open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

        await self._run(lambda: self._replace(self._path(key), copy), key)

    async def download(self, key: str, path: Path) -> None:
        def copy() -> None:
            with self._path(key).open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

        await self._run(copy, key)

    async def close(self) -> None:
        self._pool.shutdown(wait=False)

    # ---- blocking part, in the pool ----

    async def _run(self, work: Callable[[], T], key: str) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._guarded, work, key)
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            raise StorageUnavailable(f"{self.url} is closed") from None

    def _guarded(self, work: Callable[[], T], key: str) -> T:
        try:
            return work()
        except HeadraceError:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._folders.clear()  # somebody may have removed a folder that this process made
            raise self._translate(error, key) from error

    def _translate(self, error: OSError, key: str) -> StorageError:
        where = f"{self.url}/{key}"
        details = {"key": key}
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return ObjectNotFound(f"no object {where}", details=details)
        if error.errno == errno.EEXIST:
            return AlreadyExists(f"{where} exists", details=details)
        if error.errno in _NO_SPACE:
            return StorageError(
                f"no space left for {where}: free some space on the disk under {self._root} or raise the quota",
                details=details,
            )
        text = error.strerror or type(error).__name__
        if error.errno in _MAY_PASS:
            return StorageUnavailable(f"{where}: {text}", details=details)
        return StorageError(f"{where}: {text}", details=details)

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        if key.split("/", 1)[0] == _TEMPORARY:
            raise StorageError(f"{key!r}: the folder {_TEMPORARY} belongs to the bucket itself")
        return path

    def _create(self, path: Path, data: bytes) -> None:
        self._folder(path.parent)
        descriptor, name = self._temporary()
        try:
            try:
                _write(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(name, path)
            except FileExistsError:
                # Whoever made it may not have come to this yet, or have failed in it: what is there, is durably there.
                _sync_folder(path.parent)
                raise
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise UnsafeBucket(
                        f"the file system under {self._root} has no hard links ({error.strerror}), so two owners could "
                        "write one object: use a POSIX file system or an S3 bucket"
                    ) from error
                raise
        finally:
            _remove(name)
        _sync_folder(path.parent)

    def _replace(self, path: Path, fill: Callable[[int], None]) -> None:
        self._folder(path.parent)
        descriptor, name = self._temporary()
        try:
            try:
                fill(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(name, path)
        except BaseException:
            _remove(name)
            raise
        _sync_folder(path.parent)

    def _temporary(self) -> tuple[int, str]:
        folder = self._root / _TEMPORARY
        self._folder(folder)
        with self._lock:
            sweep, self._swept = not self._swept, True
        if sweep:
            _sweep(folder)
        name = str(folder / f"{os.getpid()}-{next(_counter)}-{os.urandom(6).hex()}")
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), name

    def _folder(self, folder: Path) -> None:
        """Make the folder and its parents, each durable in its own parent."""
        if folder in self._folders:
            return
        missing = []
        step = folder
        while not step.exists():
            missing.append(step)
            step = step.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            _sync_folder(new.parent)
        self._folders.add(folder)

    def _find(self, prefix: str, start_after: str) -> _Keys:
        if ".." in prefix.split("/"):
            raise StorageError(f"{prefix!r}: a prefix stays inside the bucket")
        base = prefix.rpartition("/")[0]
        found: list[str] = []
        pending = [base]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(self._root / folder) as scan:
                    entries = list(scan)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                key = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if (key.startswith(prefix) or prefix.startswith(f"{key}/")) and key != _TEMPORARY:
                        pending.append(key)
                elif key.startswith(prefix) and key > start_after:
                    found.append(key)
        return sorted(found)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def _sweep(folder: Path) -> None:
    """Remove what crashes left. Ages are taken from the file system's own clock, by a file made just now."""
    probe = folder / f"now-{os.urandom(6).hex()}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.stat().st_mtime < now - _FORGOTTEN_S:
                    _remove(entry.path)
    except OSError:
        return  # another process may sweep at the same time
    finally:
        _remove(str(probe))
