"""How a blob that is used again is kept from a collection that runs at the same time.

Blobs are stored by content, so a new run may need one that nothing has named for months, in the very moment in which
`pipelines/run_store/collector.py` removes it. The rules, by which neither side needs to know the other:

1. A sweep removes only blobs that no reference was known to and that were written more than the grace ago.
2. Whoever uses a blob that is there already, and is older than `YOUNG_S`, first *pins* it (an object of its own under
   `gc/pins/`, never written over), and then looks whether it is *claimed*.
3. A sweep first *claims* the blobs that it is about to remove (`gc/claims/`), then reads the pins, and removes what is
   not pinned; then it gives the claim up.

Either the pin is older than the sweep's look at the pins, and the blob stays; or the claim, which is older than that
look, is seen by the user, who waits for its end and stores the blob again if it is gone. A blob younger than `YOUNG_S`
has a whole day and more until rule 1 lets it go, and a pin counts as long as the grace: in that time its reference must
be in a run (a step that runs longer than that must not keep what it saved to itself). Removing is one request, which is
not repeated, so that a blob that was made anew is not removed by the first one's echo. A claim whose owner has died is
waited for no longer than `CLAIM_S`: no request is under way for an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson

from cluster.errors import ObjectNotFound, StorageUnavailable
from cluster.storage.port import Bucket

__all__ = ["CLAIMS", "CLAIM_S", "PINS", "YOUNG_S", "Keeper", "pin_of"]

PINS = "gc/pins/"
CLAIMS = "gc/claims/"
YOUNG_S = 86_400.0
"""A blob younger than this is not looked at by any sweep before tomorrow: the shortest grace is two days."""
CLAIM_S = 3600.0
_LOOKS = 40
_PAUSE_S = 0.25


class Keeper:
    """Rule 2: `await keep(sha256, key)` before a blob that is there already is relied upon."""

    def __init__(self, bucket: Bucket, *, now: Callable[[], float], unique: Callable[[], str]) -> None:
        self._bucket = bucket
        self._now = now
        self._unique = unique

    async def keep(self, sha256: str, key: str) -> bool:
        """Whether the blob is there and stays. False: store it, or refuse its use.

        Raises `StorageUnavailable` when a sweep that has it claimed takes too long.
        """
        try:
            written = await self._bucket.modified(key)
        except ObjectNotFound:
            return False
        now = self._now()
        if now - written < YOUNG_S:
            return True
        # The time goes into the name: a pin's age is then known from a list of them.
        await self._bucket.put(f"{PINS}{sha256}.{int(now):012d}.{self._unique()}", b"")
        for _ in range(_LOOKS):
            if not await self._claimed(sha256):
                try:
                    await self._bucket.size(key)
                except ObjectNotFound:
                    return False
                return True
            await asyncio.sleep(_PAUSE_S)
        raise StorageUnavailable(f"{key} is being collected just now: try again in a moment", retry_after_s=5)

    async def _claimed(self, sha256: str) -> bool:
        for claim in await self._bucket.list(CLAIMS):
            try:
                if self._now() - await self._bucket.modified(claim) > CLAIM_S:
                    continue
                if sha256 in orjson.loads(await self._bucket.get(claim)):
                    return True
            except ObjectNotFound:
                continue
        return False


def pin_of(key: str) -> tuple[str, float] | None:
    """The blob that a pin is of, and when it was made; None for another object."""
    parts = key.removeprefix(PINS).split(".")
    return (parts[0], float(parts[1])) if len(parts) == 3 and parts[1].isdigit() else None
