"""The bytes of a run store's snapshot: the engine's part and the store's part, with a format version. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from cluster.errors import CorruptObject, FormatVersionUnsupported

__all__ = ["SNAPSHOT_FORMAT", "join_snapshot", "split_snapshot"]

SNAPSHOT_FORMAT = 1
_SNAPSHOT = struct.Struct("<4sIQ")
_MAGIC = b"HRRS"


def join_snapshot(engine: Iterable[bytes], store: Iterable[bytes]) -> bytes:
    """Both parts, each in pieces, as one. Nothing is copied twice, and other threads run meanwhile."""
    pieces = list(engine)
    head = _SNAPSHOT.pack(_MAGIC, SNAPSHOT_FORMAT, sum(map(len, pieces)))
    return b"".join([head, *pieces, *store])


def split_snapshot(data: bytes) -> tuple[bytes, bytes]:
    """The engine's part and the store's part of a snapshot.

    Raises:
        FormatVersionUnsupported: another release's format.
        CorruptObject: not a run store's snapshot.
    """
    if len(data) < _SNAPSHOT.size:
        raise CorruptObject("a snapshot of a run store is cut short")
    magic, version, length = _SNAPSHOT.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptObject("a snapshot was not written by a run store")
    if version != SNAPSHOT_FORMAT:
        raise FormatVersionUnsupported(
            f"a snapshot has format {version}; this release reads format {SNAPSHOT_FORMAT}",
            details={"found": version, "supported": SNAPSHOT_FORMAT},
        )
    start = _SNAPSHOT.size
    return data[start : start + length], data[start + length :]
