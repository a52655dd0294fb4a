"""A bucket on any S3 server that honours `If-None-Match: *`, over aiobotocore (the client that s3fs uses)."""

from __future__ import annotations

import asyncio
import contextlib
import random as random_module
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import (
    AlreadyExists,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    UnsafeBucket,
)
from cluster.storage.port import check_key

__all__ = ["S3Bucket"]

T = TypeVar("T")
_Keys = list[str]

_PART = 16 << 20
"""Bytes per part of a multipart upload and per ranged read of a download; S3 allows 10,000 parts."""
_NONCE = "headrace-create"
"""Name of the object metadata that says which call of `create` made it."""
_PARALLEL_PARTS = 4
_TRIES = 6
_BUSY_CODES = {
    "SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable", "Throttling",
    "ThrottlingException", "TooManyRequests", "OperationAborted", "ConditionalRequestConflict",
}  # fmt: skip


class S3Bucket:
    """Objects of one S3 bucket under an optional prefix.

    Calls are tried up to six times with full jitter on 429, 5xx, time-outs and broken connections. A create that finds
    the key taken looks who made the object: after a lost answer it may have been itself.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None,
        region: str | None,
        path_style: bool,
        access_key: str | None,
        secret_key: str | None,
        random: random_module.Random,
        timeout_s: float = 15.0,
        connections: int = 64,
    ):
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._path_style = path_style
        self._access_key = access_key
        self._secret_key = secret_key
        self._random = random
        self._timeout_s = timeout_s
        self._connections = connections
        self._stack = contextlib.AsyncExitStack()
        self._opening: asyncio.Future[Any] | None = None

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    async def get(self, key: str) -> bytes:
        async def call(client: Any) -> bytes:
            answer = await client.get_object(Bucket=self._bucket, Key=self._name(key))
            async with answer["Body"] as body:
                data: bytes = await body.read()
            return data

        return await self._retry(key, call)

    async def create(self, key: str, data: bytes) -> None:
        # The HTTP client repeats a PUT by itself when a kept-alive connection breaks, so even the first answer that we
        # see may be about our own object: the nonce tells it from a rival's.
        nonce = f"{self._random.getrandbits(128):032x}"

        async def call(client: Any) -> None:
            await client.put_object(
                Bucket=self._bucket, Key=self._name(key), Body=data, IfNoneMatch="*", Metadata={_NONCE: nonce}
            )

        async def look(client: Any) -> str | None:
            answer = await client.head_object(Bucket=self._bucket, Key=self._name(key))
            found: str | None = answer.get("Metadata", {}).get(_NONCE)
            return found

        try:
            await self._retry(key, call)
        except AlreadyExists as taken:
            try:
                found = await self._retry(key, look)
            except ObjectNotFound:
                raise taken from None
            if found != nonce:
                raise

    async def put(self, key: str, data: bytes) -> None:
        async def call(client: Any) -> None:
            await client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data)

        await self._retry(key, call)

    async def delete(self, key: str, *, once: bool = False) -> None:
        async def call(client: Any) -> None:
            await client.delete_object(Bucket=self._bucket, Key=self._name(key))

        with contextlib.suppress(ObjectNotFound):
            await self._retry(key, call, tries=1 if once else _TRIES)

    async def list(self, prefix: str, *, start_after: str = "") -> _Keys:
        found: _Keys = []
        token: dict[str, str] = {"StartAfter": self._prefix + start_after} if start_after else {}
        while True:
            page = token

            async def call(client: Any, page: dict[str, str] = page) -> dict[str, Any]:
                answer: dict[str, Any] = await client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, **page
                )
                return answer

            answer = await self._retry(prefix, call)
            found.extend(entry["Key"].removeprefix(self._prefix) for entry in answer.get("Contents", ()))
            if not answer.get("IsTruncated"):
                return sorted(key for key in found if key > start_after)
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    async def size(self, key: str) -> int:
        async def call(client: Any) -> int:
            answer = await client.head_object(Bucket=self._bucket, Key=self._name(key))
            return int(answer["ContentLength"])

        return await self._retry(key, call)

    async def modified(self, key: str) -> float:
        async def call(client: Any) -> float:
            answer = await client.head_object(Bucket=self._bucket, Key=self._name(key))
            return float(answer["LastModified"].timestamp())

        return await self._retry(key, call)

    async def upload(self, key: str, path: Path) -> None:
        size = (await asyncio.to_thread(path.stat)).st_size
        if size <= _PART:
            await self.put(key, await asyncio.to_thread(path.read_bytes))
            return
        part_size = max(_PART, -(-size // 9000))
        name = self._name(key)

        async def begin(client: Any) -> str:
            answer = await client.create_multipart_upload(Bucket=self._bucket, Key=name)
            return str(answer["UploadId"])

        upload = await self._retry(key, begin)

        async def send(number: int) -> dict[str, Any]:
            data = await asyncio.to_thread(_read_range, path, (number - 1) * part_size, part_size)

            async def call(client: Any) -> str:
                answer = await client.upload_part(
                    Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=data
                )
                return str(answer["ETag"])

            return {"PartNumber": number, "ETag": await self._retry(key, call)}

        async def finish(client: Any) -> None:
            await client.complete_multipart_upload(
                Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
            )

        async def abort(client: Any) -> None:
            await client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)

        try:
            parts = [part async for part in _in_order(send, range(1, -(-size // part_size) + 1))]
            try:
                await self._retry(key, finish)
            except ObjectNotFound:
                # A repeated completion finds no upload any more when the first one's answer was lost.
                if await self.size(key) != size:
                    raise
        except BaseException:
            with contextlib.suppress(StorageError):
                await self._retry(key, abort)
            raise

    async def download(self, key: str, path: Path) -> None:
        size = await self.size(key)

        async def read(number: int) -> bytes:
            start = number * _PART

            async def call(client: Any) -> bytes:
                answer = await client.get_object(
                    Bucket=self._bucket, Key=self._name(key), Range=f"bytes={start}-{min(start + _PART, size) - 1}"
                )
                async with answer["Body"] as body:
                    data: bytes = await body.read()
                return data

            return await self._retry(key, call)

        with path.open("wb") as target:
            async with contextlib.aclosing(_in_order(read, range(-(-size // _PART)))) as parts:
                async for data in parts:
                    await asyncio.to_thread(target.write, data)

    async def close(self) -> None:
        self._opening = None
        await self._stack.aclose()

    # ---- one call ----

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    async def _client(self) -> Any:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._opening is opening:
                self._opening = None
            raise

    async def _open(self) -> Any:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session

        config = AioConfig(
            connect_timeout=min(5.0, self._timeout_s),
            read_timeout=self._timeout_s,
            max_pool_connections=self._connections,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours: they know which outcomes are uncertain
            s3={"addressing_style": "path" if self._path_style else "virtual"},
            request_checksum_calculation="when_required",  # many S3 servers know no trailing checksums
            response_checksum_validation="when_required",
        )
        return await self._stack.enter_async_context(
            get_session().create_client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=self._region or "us-east-1",
                aws_access_key_id=self._access_key,
                aws_secret_access_key=self._secret_key,
                config=config,
            )
        )

    async def _retry(self, key: str, call: Callable[[Any], Awaitable[T]], *, tries: int = _TRIES) -> T:
        for attempt in range(tries):
            try:
                return await call(await self._client())
            except StorageError:
                raise
            except Exception as error:
                translated = _translate(error, self.url, key)
                if translated is None:
                    raise
                if attempt == tries - 1 or not isinstance(translated, StorageUnavailable):
                    raise translated from error
            # "Full jitter": https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            await asyncio.sleep(self._random.uniform(0, min(5.0, 0.05 * 2**attempt)))
        raise AssertionError("unreachable")


def _translate(error: Exception, url: str, key: str) -> StorageError | None:
    """The error in the bucket port's terms; None when it is a defect of ours."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    where, details = f"{url}/{key}", {"key": key}
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = f"{where}: {status} {code} {error.response.get('Error', {}).get('Message', '')}".rstrip()
        if code == "PreconditionFailed" or status == 412:
            return AlreadyExists(f"{where} exists", details=details)
        if code == "NoSuchBucket":
            return StorageError(f"{url}: there is no such bucket; create it first", details=details)
        if code == "NotImplemented" or status == 501:
            return UnsafeBucket(f"{text}: this S3 server lacks a call that headrace needs", details=details)
        if code in _BUSY_CODES or status == 429 or status >= 500:
            return StorageUnavailable(text, details=details)
        if code in ("NoSuchKey", "NoSuchUpload", "404") or status == 404:
            return ObjectNotFound(f"no object {where}", details=details)
        if status in (401, 403):
            return StorageError(f"{text}: check storage.access_key and storage.secret_key", details=details)
        return StorageError(text, details=details)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"{url}: {error}; set storage.access_key and storage.secret_key", details=details)
    if isinstance(error, BotoCoreError | TimeoutError | OSError) or type(error).__module__.startswith("aiohttp"):
        return StorageUnavailable(f"{where}: {error or type(error).__name__}", details=details)
    return None


async def _in_order(work: Callable[[int], Awaitable[T]], numbers: range) -> AsyncGenerator[T]:
    """Results of `work(n)` in order, a few at a time, so that only a few parts are in memory."""
    running: list[asyncio.Task[T]] = []
    todo = iter(numbers)
    try:
        for number in todo:
            running.append(asyncio.ensure_future(work(number)))
            if len(running) >= _PARALLEL_PARTS:
                yield await running.pop(0)
        while running:
            yield await running.pop(0)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _read_range(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as source:
        source.seek(start)
        return source.read(length)
