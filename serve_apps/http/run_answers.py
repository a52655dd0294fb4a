"""What the workflow routes answer with: event streams, parts of outputs, the contents of blobs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from cluster.errors import HeadraceError, InvalidInput, NotFound, TooLarge
from cluster.storage import BlobRef
from serve_apps.http.json_text import dumps
from serve_apps.http.run_bodies import OCTETS
from serve_apps.http.runs_gateway import RunsGateway

__all__ = ["BlobReader", "output_response", "parse_time", "resolve_pointer", "sse_events", "whole_number"]

MAX_POINTED_BYTES = 64 << 20
"""A part can be taken out of a JSON output up to this size; a larger one is to be downloaded whole."""
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(; ?[\w-]{1,32}=[\w.:+-]{1,64}){0,4}", re.ASCII)
"""RFC 6838's names, with simple parameters."""


class BlobReader(Protocol):
    """The part of the blob store that downloads and logs need. Raises `ObjectNotFound`."""

    async def size(self, reference: Mapping[str, Any]) -> int:
        """How many bytes the blob has, whatever its reference says."""
        ...

    def stream(self, reference: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """The content in chunks. Raises at the first one."""
        ...

    async def read(self, key: str) -> bytes:
        """A log as it is now."""
        ...


async def sse_events(
    gateway: RunsGateway, run_id: str, after: int, page: dict[str, Any], *, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """The event stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), from a first page on."""
    yield b"retry: 1000\n\n"
    while True:
        for event in page["events"]:
            after = event["id"]
            data = dumps(event["data"]).decode()
            yield f"id: {after}\nevent: {event['event']}\ndata: {data}\n\n".encode()
        if page["done"]:
            return
        if not page["events"]:
            yield b": keep-alive\n\n"
        try:
            page = await gateway.events(run_id, after, heartbeat_s)
        except HeadraceError as error:
            if not error.retryable:
                raise
            # The run store restarts: its numbers go on where they were, so the stream can simply wait for it.
            page = {"events": [], "done": False}
            await asyncio.sleep(min(1.0, heartbeat_s))


def parse_time(text: str) -> float:
    """Seconds since the epoch from ISO 8601 or a number. Raises `InvalidInput`."""
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(text)):
            return seconds
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"since={text!r} is no time: use ISO 8601 (2026-11-23T10:00:00Z) or seconds since the epoch"
        ) from None


def whole_number(name: str, text: str) -> int:
    """A number that a caller got from us and sends back. Raises `InvalidInput`."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidInput(f"{name} {text[:40]!r} is none of those that were given out (whole numbers)")
    return int(text)


async def output_response(blobs: BlobReader, value: Any, pointer: str) -> Response:
    """An output, or the part of it at a JSON Pointer: JSON, or a blob's content as its media type.

    Whoever may start runs may choose that type and the content: browsers are told to run no script in it. Raises
    `NotFound` for a part or a blob that is not there, `TooLarge` for a part of a very large output.
    """
    reference = _reference(value)
    if reference is not None and reference.spilled and pointer:
        if (size := await blobs.size(value)) > MAX_POINTED_BYTES:
            raise TooLarge(f"the output has {size} bytes: download it without a pointer and take the part there")
        text = b"".join([chunk async for chunk in blobs.stream(value)])
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise NotFound(f"the output has nothing at {pointer!r}: it is a file") from None
    value = resolve_pointer(value, pointer)
    reference = _reference(value)
    if reference is None:
        return Response(dumps(value), media_type="application/json")
    headers = {
        "content-length": str(await blobs.size(value)),
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
    }
    if reference.name:
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(reference.name, safe='')}"
    media_type = "application/json" if reference.spilled else reference.media_type
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = OCTETS
    return StreamingResponse(blobs.stream(value), media_type=media_type, headers=headers)


def _reference(value: Any) -> BlobRef | None:
    """The blob that a value stands for; a value that only looks like a reference stands for itself."""
    try:
        return BlobRef.parse(value)
    except InvalidInput:
        return None


def resolve_pointer(value: Any, pointer: str) -> Any:
    """RFC 6901. Raises `NotFound` naming the part that is missing."""
    if not pointer:
        return value
    if not pointer.startswith("/"):
        raise InvalidInput(f"pointer={pointer!r} must be empty or start with '/' (JSON Pointer)")
    for part in pointer[1:].split("/"):
        token = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and re.fullmatch(r"[0-9]{1,9}", token) and int(token) < len(value):
            value = value[int(token)]
        else:
            raise NotFound(f"the output has nothing at {pointer!r} (missing: {token!r})")
    return value
