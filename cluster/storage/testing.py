"""A bucket in memory that can be slow, busy, or lose its answers: by a seeded random source and the loop's own time."""

from __future__ import annotations

import asyncio
import bisect
import random
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cluster.errors import AlreadyExists, ObjectNotFound, StorageUnavailable
from cluster.storage.port import check_key

__all__ = ["Faults", "MemoryBucket"]

T = TypeVar("T")
_Keys = list[str]


@dataclass
class Faults:
    """How often a call goes wrong. Shares are of all calls; latencies are drawn evenly from the range, in seconds.

    `slow` calls take `slow_s` in place of `latency_s`, on their way to the bucket: a write of a process that died
    meanwhile still lands.
    """

    random: random.Random
    latency_s: tuple[float, float] = (0.001, 0.01)
    unavailable: float = 0.0
    lost_answer: float = 0.0
    slow: float = 0.0
    slow_s: tuple[float, float] = (0.5, 5.0)
    enabled: bool = True


@dataclass
class MemoryBucket:
    """Implements `Bucket` over a dictionary. Several buckets over one `objects` are several machines at one bucket.

    With `faults`, each call is a message that goes on by itself: cancelling the caller does not take back a request
    that is on its way, just as with a real network. `network` is the context those messages run in.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: Faults | None = None
    network: Context | None = None
    name: str = "test"
    calls: Counter[str] = field(default_factory=Counter)
    times: dict[str, float] = field(default_factory=dict)
    """When objects were written, where `now` was asked; share it together with `objects`."""
    now: Callable[[], float] = time.time
    _messages: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"memory://{self.name}"

    async def get(self, key: str) -> bytes:
        return await self._call("get", lambda: self._get(key))

    async def create(self, key: str, data: bytes) -> None:
        await self._call("create", lambda: self._create(key, bytes(data)))

    async def put(self, key: str, data: bytes) -> None:
        check_key(key)
        await self._call("put", lambda: self._write(key, bytes(data)))

    async def delete(self, key: str, *, once: bool = False) -> None:
        await self._call("delete", lambda: self.objects.pop(check_key(key), None))

    async def list(self, prefix: str, *, start_after: str = "") -> list[str]:
        return await self._call("list", lambda: self._find(prefix, start_after))

    async def size(self, key: str) -> int:
        return await self._call("size", lambda: len(self._get(key)))

    async def modified(self, key: str) -> float:
        return await self._call("modified", lambda: self._modified(key))

    async def upload(self, key: str, path: Path) -> None:
        await self.put(key, path.read_bytes())

    async def download(self, key: str, path: Path) -> None:
        path.write_bytes(await self.get(key))

    async def close(self) -> None:
        return None

    # ---- what happens at the bucket ----

    def _get(self, key: str) -> bytes:
        try:
            return self.objects[check_key(key)]
        except KeyError:
            raise ObjectNotFound(f"no object {self.url}/{key}", details={"key": key}) from None

    def _create(self, key: str, data: bytes) -> None:
        if check_key(key) in self.objects:
            raise AlreadyExists(f"{self.url}/{key} exists", details={"key": key})
        self._write(key, data)

    def _write(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.times[key] = self.now()

    def _modified(self, key: str) -> float:
        self._get(key)
        return self.times.get(key, self.now())

    def _find(self, prefix: str, start_after: str) -> _Keys:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        return keys[bisect.bisect_right(keys, start_after) :] if start_after else keys

    # ---- the way there and back ----

    async def _call(self, method: str, happen: Callable[[], T]) -> T:
        self.calls[method] += 1
        if self.faults is None or not self.faults.enabled:
            await asyncio.sleep(0)
            return happen()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        message = loop.create_task(self._message(method, happen, answer, self.faults), context=self.network)
        self._messages.add(message)
        message.add_done_callback(self._messages.discard)
        return await answer

    async def _message(self, method: str, happen: Callable[[], T], answer: asyncio.Future[T], faults: Faults) -> None:
        draw = faults.random
        slow = draw.random() < faults.slow
        await asyncio.sleep(draw.uniform(*(faults.slow_s if slow else faults.latency_s)))
        fate = draw.random()
        try:
            if fate < faults.unavailable:
                raise StorageUnavailable(f"{self.url}: 503 on {method} (injected)")
            result = happen()
            await asyncio.sleep(draw.uniform(*faults.latency_s))
            if fate < faults.unavailable + faults.lost_answer:
                raise StorageUnavailable(f"{self.url}: no answer to {method} (injected)")
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)
