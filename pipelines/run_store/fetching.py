"""Reads a spilled value back for the engine, whatever comes of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import CorruptObject, HeadraceError, StorageUnavailable
from cluster.storage import BlobRef, BlobStore
from pipelines.engine import FetchValue

__all__ = ["Fetched", "fetch"]

_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The value and its bytes of JSON; or `error`, in the form of `HeadraceError.to_dict()`."""

    value: Any = None
    size: int = 0
    error: dict[str, Any] | None = None


async def fetch(blobs: BlobStore, command: FetchValue) -> Fetched:
    """Tried again for some seconds while the bucket does not answer. Never raises for what stands in the bucket."""
    found = Fetched()
    for attempt in range(_TRIES):
        try:
            reference = BlobRef.parse(command.reference)
            assert reference is not None
            data = await blobs.get(reference)
            return Fetched(value=orjson.loads(data), size=len(data))
        except StorageUnavailable as error:
            found = Fetched(error=error.to_dict())
            await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        except orjson.JSONDecodeError:
            return Fetched(error=CorruptObject(f"blob {command.sha256} is not JSON").to_dict())
        except HeadraceError as error:
            return Fetched(error=error.to_dict())
    return found
