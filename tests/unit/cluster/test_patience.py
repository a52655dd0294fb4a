"""How a process waits for its bucket."""

from __future__ import annotations

import pytest

from cluster.errors import (
    CorruptObject,
    Fenced,
    FormatVersionUnsupported,
    StorageError,
    StorageUnavailable,
    UnsafeBucket,
)
from cluster.storage.patience import patiently


async def test_a_bucket_that_is_away_or_full_is_tried_again() -> None:
    """Each time somebody is told why not."""
    troubles: list[StorageError] = [StorageUnavailable("away"), StorageError("no space left"), StorageError("no key")]
    left = list(troubles)
    told: list[StorageError] = []

    async def work() -> str:
        if left:
            raise left.pop(0)
        return "open"

    assert await patiently(work, tell=told.append, again_s=0.0) == "open"
    assert told == troubles


@pytest.mark.parametrize("error", [CorruptObject, FormatVersionUnsupported, UnsafeBucket, Fenced])
async def test_what_waiting_would_not_cure_is_raised(error: type[StorageError]) -> None:
    """A person has to look at it."""

    async def work() -> None:
        raise error("so it is")

    with pytest.raises(error):
        await patiently(work, tell=lambda _: pytest.fail("it was waited for"), again_s=0.0)
