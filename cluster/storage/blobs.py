"""Large values by reference: content-addressed objects under `blobs/`, for actors (async) and step tasks (blocking)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from cluster.errors import AlreadyExists, CorruptObject, InvalidInput, ObjectNotFound
from cluster.storage.keeping import Keeper
from cluster.storage.port import Bucket

__all__ = ["BlobRef", "BlobStore", "BlockingBlobs"]

T = TypeVar("T")

_SKIP_FROM = 256 << 10
"""From this size on, asking whether a blob is there already is cheaper than sending it again."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """What stands for a blob in JSON. `spilled`: headrace put the value away and puts it back for scripts."""

    sha256: str
    size: int
    media_type: str = "application/octet-stream"
    name: str | None = None
    spilled: bool = False

    @property
    def key(self) -> str:
        """Where the bytes stand in the bucket."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"

    def to_json(self) -> dict[str, Any]:
        """`{"$blob": sha256, "size": n, "media_type": …}` and, where set, `name` and `spilled`."""
        out: dict[str, Any] = {"$blob": self.sha256, "size": self.size, "media_type": self.media_type}
        if self.name is not None:
            out["name"] = self.name
        if self.spilled:
            out["spilled"] = True
        return out

    @classmethod
    def parse(cls, value: object) -> BlobRef | None:
        """The reference in a JSON value, or None when the value is not one. Raises `InvalidInput` when malformed."""
        if not isinstance(value, Mapping) or "$blob" not in value:
            return None
        digest, size = value["$blob"], value.get("size")
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise InvalidInput(f"$blob: {digest!r} is not a SHA-256 in lower-case hex")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInput(f"blob {digest}: size is {size!r}, expected a number of bytes")
        media_type, name = value.get("media_type", "application/octet-stream"), value.get("name")
        if not isinstance(media_type, str) or not (name is None or isinstance(name, str)):
            raise InvalidInput(f"blob {digest}: media_type and name must be text")
        return cls(sha256=digest, size=size, media_type=media_type, name=name, spilled=value.get("spilled") is True)


class BlobStore:
    """Puts and gets blobs. The same bytes are stored once; what is read is checked against its SHA-256.

    `unique` gives a text that it never gave before, in any process.
    """

    def __init__(
        self, bucket: Bucket, *, now: Callable[[], float] = time.time, unique: Callable[[], str] = lambda: uuid4().hex
    ):
        self._bucket = bucket
        self._keeper = Keeper(bucket, now=now, unique=unique)

    @property
    def bucket(self) -> Bucket:
        return self._bucket

    async def put(
        self,
        data: bytes,
        *,
        media_type: str = "application/octet-stream",
        name: str | None = None,
        spilled: bool = False,
    ) -> BlobRef:
        """Store bytes; durable on return."""
        ref = BlobRef(
            sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=media_type, name=name, spilled=spilled
        )
        if ref.size >= _SKIP_FROM and await self._stored(ref):
            return ref
        try:
            await self._bucket.create(ref.key, data)
        except AlreadyExists:
            if not await self._stored(ref):
                await self._bucket.put(ref.key, data)
        return ref

    async def keep(self, ref: BlobRef) -> bool:
        """Whether a blob that a new run refers to is there; from now on it stays for as long as a new one would."""
        return await self._keeper.keep(ref.sha256, ref.key)

    async def put_json(self, value: Any, *, name: str | None = None, spilled: bool = False) -> BlobRef:
        """Store a JSON-like value."""
        return await self.put(orjson.dumps(value), media_type="application/json", name=name, spilled=spilled)

    async def put_file(
        self, path: Path, *, media_type: str = "application/octet-stream", name: str | None = None
    ) -> BlobRef:
        """Store a local file of any size, read twice and never held in memory. Raises `InvalidInput` if unreadable."""
        try:
            digest, size = await asyncio.to_thread(_hash_file, path)
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from error
        ref = BlobRef(sha256=digest, size=size, media_type=media_type, name=name or path.name)
        if not await self._stored(ref):
            await self._bucket.upload(ref.key, path)
        return ref

    async def get(self, ref: BlobRef) -> bytes:
        """The bytes. Raises `ObjectNotFound`, or `CorruptObject` when they are not those that were stored."""
        data = await self._bucket.get(ref.key)
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise _corrupt(ref)
        return data

    async def get_json(self, ref: BlobRef) -> Any:
        """The JSON value."""
        return orjson.loads(await self.get(ref))

    async def get_file(self, ref: BlobRef, path: Path) -> None:
        """Write the blob to a local file, which appears only when it is whole and checked."""
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, prefix=".blob-", dir=path.parent)
        os.close(descriptor)
        partial = Path(name)
        try:
            await self._bucket.download(ref.key, partial)
            digest, _ = await asyncio.to_thread(_hash_file, partial)
            if digest != ref.sha256:
                raise _corrupt(ref)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    async def _stored(self, ref: BlobRef) -> bool:
        """Whether it is there, whole, and stays."""
        try:
            if await self._bucket.size(ref.key) != ref.size:
                return False
        except ObjectNotFound:
            return False
        return await self._keeper.keep(ref.sha256, ref.key)


class BlockingBlobs:
    """The same for plain blocking code, such as a step's worker: the bucket lives on a thread with its own event loop.

    Safe to use from several threads. `close` ends the thread and closes the bucket.
    """

    def __init__(self, bucket: Bucket):
        self._store = BlobStore(bucket)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blobs", daemon=True)
        self._thread.start()

    def put(
        self,
        data: bytes,
        *,
        media_type: str = "application/octet-stream",
        name: str | None = None,
        spilled: bool = False,
    ) -> BlobRef:
        return self._wait(self._store.put(data, media_type=media_type, name=name, spilled=spilled))

    def put_at(self, key: str, data: bytes) -> None:
        """Write an object that is no blob, over what was there."""
        self.begin_put_at(key, data).result()

    def begin_put_at(self, key: str, data: bytes) -> Future[None]:
        """The same, begun: `result()` waits for it and raises what it raised."""
        return asyncio.run_coroutine_threadsafe(self._put_at(key, data), self._loop)

    async def _put_at(self, key: str, data: bytes) -> None:
        await self._store.bucket.put(key, data)

    def put_json(self, value: Any, *, name: str | None = None, spilled: bool = False) -> BlobRef:
        return self._wait(self._store.put_json(value, name=name, spilled=spilled))

    def put_file(self, path: Path, *, media_type: str = "application/octet-stream", name: str | None = None) -> BlobRef:
        return self._wait(self._store.put_file(path, media_type=media_type, name=name))

    def get(self, ref: BlobRef) -> bytes:
        return self._wait(self._store.get(ref))

    def get_json(self, ref: BlobRef) -> Any:
        return self._wait(self._store.get_json(ref))

    def get_file(self, ref: BlobRef, path: Path) -> None:
        self._wait(self._store.get_file(ref, path))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._wait(self._store.bucket.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> BlockingBlobs:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _hash_file(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _corrupt(ref: BlobRef) -> CorruptObject:
    return CorruptObject(
        f"{ref.key} is corrupt: its bytes do not have the SHA-256 in its name; restore it from a copy of the bucket",
        details={"key": ref.key},
    )
