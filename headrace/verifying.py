"""`headrace verify`: which bucket is meant, and its check by `pipelines.verify`. Needs no cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cluster.config.models import StorageConfig
from cluster.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.context import Shared

__all__ = ["storage_of", "verify_storage"]


def storage_of(shared: Shared, url: str | None) -> StorageConfig:
    """The environment's bucket; with `url` that place, with the environment's endpoint and keys if there are any."""
    try:
        configured = shared.load(unset="keep").config.storage
    except HeadraceError:
        if url is None:
            raise
        configured = StorageConfig()
    return configured if url is None else configured.model_copy(update={"url": url})


def verify_storage(shared: Shared, url: str | None, *, acknowledged: Iterable[str] = ()) -> dict[str, Any]:
    """The report as JSON: `{url, ok, counts, violations, …}`. `acknowledged` are ids of runs that must be there: the
    end of a log that is gone shows in nothing else. Raises what opening the bucket raises."""
    from cluster.config.secrets import Secrets
    from cluster.storage import open_bucket
    from pipelines.verify.reading import verify_bucket

    storage = storage_of(shared, url)

    async def check() -> dict[str, Any]:
        bucket = open_bucket(storage, resolve_secret=Secrets.open(shared.env).value)
        try:
            report = await verify_bucket(bucket, acknowledged=acknowledged)
        finally:
            await bucket.close()
        return {**report.to_dict(), "url": storage.url, "lines": report.lines()}

    return asyncio.run(check())
