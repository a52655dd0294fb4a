"""What of a shard may be collected: the rules, as plain functions of what is known. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipelines.run_store.archive import ArchiveSegment
from pipelines.run_store.runids import created_ms

__all__ = ["DIGEST_BYTES", "Marks", "is_old", "may_be_old", "references_in"]

_REFERENCE = re.compile(rb'\$blob\\*"\s*:\s*\\*"([0-9a-f]{64})')
"""A blob's hash wherever it stands in JSON, also in JSON that stands as text in other JSON."""
DIGEST_BYTES = 12
"""So much of a hash is kept per blob that is in use: two that agree in it keep each other, which does no harm."""


def references_in(data: bytes) -> Iterable[str]:
    """The hashes of all blobs that a JSON text refers to."""
    return (match.decode() for match in _REFERENCE.findall(data))


class Marks:
    """The set of blobs in use, 12 bytes each."""

    def __init__(self, packed: bytes = b"") -> None:
        self._digests = {packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)}

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, sha256: str) -> bool:
        return _short(sha256) in self._digests

    def add(self, sha256: str) -> None:
        self._digests.add(_short(sha256))

    def update(self, other: Marks) -> None:
        """Take in another shard's."""
        self._digests |= other._digests

    def pack(self) -> bytes:
        """For the constructor."""
        return b"".join(sorted(self._digests))


def _short(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:DIGEST_BYTES]


def may_be_old(segment: ArchiveSegment, *, before: float) -> bool:
    """Whether all runs of an archive object may have ended before this time: they ended after they were created."""
    return created_ms(segment.high) / 1000 < before and segment.ended < before


def is_old(rows: Sequence[dict[str, object]], *, before: float) -> bool:
    """Whether all of an object's runs ended before this time. One whose end is not known is kept."""
    return all(isinstance(end := row.get("finished_at"), (int, float)) and end < before for row in rows)
