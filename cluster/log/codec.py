"""The bytes of the durable log's objects: framing, checksums, versions. Pure: it knows no bucket and no clock.

An object is

    magic b"HRLOG\\n" | version, uint16 | length of header, uint32 | header, JSON | body | SHA-256 of all before

with little-endian numbers. The body of a segment is the records' lengths as uint32 each, then the records one after
another; the body of a snapshot is the owner's bytes. `codec` says whether the body is stored as it is (`none`) or
compressed (`zstd`). A segment's header names the digest of the segment before it, so that a segment which was
replaced by another valid one is noticed. Readers ignore unknown header keys: a later release may add some.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import zstandard

from cluster.errors import CorruptObject, FormatVersionUnsupported

__all__ = [
    "FORMAT_VERSION",
    "GENESIS",
    "Segment",
    "Snapshot",
    "decode_segment",
    "decode_snapshot",
    "digest_of",
    "encode_segment",
    "encode_snapshot",
]

FORMAT_VERSION = 1
GENESIS = "0" * 64
"""What the first segment of a log names as the digest of the segment before it."""

_MAGIC = b"HRLOG\n"
_PREFIX = struct.Struct("<6sHI")
_DIGEST = 32
_COMPRESS_FROM = 1024
"""Bodies below this many bytes are stored as they are: compression would save nothing."""
_MAX_BODY = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One object under `wal/`. `first` is the index in the whole log of its first record; `at` is seconds since 1970.

    An `epoch` segment holds no records: it says that `writer` owns the log from here on.
    """

    kind: Literal["epoch", "records"]
    log: str
    seq: int
    epoch: int
    writer: str
    first: int
    previous: str
    at: float
    records: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One object under `snap/`: the owner's state after all records with an index below `position`.

    `seq` is the last segment that it covers wholly, `covered` the index of the first record after that segment (at most
    `position`), `previous` that segment's digest, `epoch` the writer's epoch, and `fences` the sequence numbers of all
    epoch segments up to `seq`: those are never collected.
    """

    log: str
    seq: int
    epoch: int
    writer: str
    position: int
    covered: int
    previous: str
    fences: tuple[int, ...]
    at: float
    body: bytes


def encode_segment(segment: Segment, *, compress: bool = True) -> bytes:
    """The object's bytes. Equal segments give equal bytes."""
    records = segment.records
    header: dict[str, Any] = {
        "kind": segment.kind,
        "log": segment.log,
        "seq": segment.seq,
        "epoch": segment.epoch,
        "writer": segment.writer,
        "first": segment.first,
        "count": len(records),
        "previous": segment.previous,
        "at": segment.at,
    }
    return _frame(header, _pack(records), compress)


def decode_segment(data: bytes, *, key: str) -> Segment:
    """The segment in these bytes. Raises `CorruptObject` (naming `key`) or `FormatVersionUnsupported`."""
    header, body = _unframe(data, key)
    try:
        if header["kind"] not in ("epoch", "records"):
            raise CorruptObject(f"{key} is a {header['kind']!r} object, not a log segment", details={"key": key})
        return Segment(
            kind=header["kind"],
            log=header["log"],
            seq=header["seq"],
            epoch=header["epoch"],
            writer=header["writer"],
            first=header["first"],
            previous=header["previous"],
            at=header["at"],
            records=_unpack(body, header["count"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(key, f"its header or records make no sense ({error})") from None


def encode_snapshot(snapshot: Snapshot, *, compress: bool = True) -> bytes:
    """The object's bytes."""
    header: dict[str, Any] = {
        "kind": "snapshot",
        "log": snapshot.log,
        "seq": snapshot.seq,
        "epoch": snapshot.epoch,
        "writer": snapshot.writer,
        "position": snapshot.position,
        "covered": snapshot.covered,
        "previous": snapshot.previous,
        "fences": list(snapshot.fences),
        "at": snapshot.at,
    }
    return _frame(header, snapshot.body, compress)


def decode_snapshot(data: bytes, *, key: str) -> Snapshot:
    """The snapshot in these bytes. Raises `CorruptObject` (naming `key`) or `FormatVersionUnsupported`."""
    header, body = _unframe(data, key)
    try:
        if header["kind"] != "snapshot":
            raise CorruptObject(f"{key} is a {header['kind']!r} object, not a snapshot", details={"key": key})
        return Snapshot(
            log=header["log"],
            seq=header["seq"],
            epoch=header["epoch"],
            writer=header["writer"],
            position=header["position"],
            covered=header["covered"],
            previous=header["previous"],
            fences=tuple(header["fences"]),
            at=header["at"],
            body=body,
        )
    except (KeyError, TypeError) as error:
        raise _corrupt(key, f"its header makes no sense ({error})") from None


def digest_of(data: bytes) -> str:
    """The digest that the next segment names as `previous`: the object's own trailing checksum, in hex."""
    return data[-_DIGEST:].hex()


def _frame(header: dict[str, Any], body: bytes, compress: bool) -> bytes:
    stored, codec = body, "none"
    if compress and len(body) >= _COMPRESS_FROM:
        packed = zstandard.ZstdCompressor(level=1).compress(body)
        if len(packed) < len(body):
            stored, codec = packed, "zstd"
    text = orjson.dumps({**header, "codec": codec, "size": len(body)})
    framed = b"".join((_PREFIX.pack(_MAGIC, FORMAT_VERSION, len(text)), text, stored))
    return framed + hashlib.sha256(framed).digest()


def _unframe(data: bytes, key: str) -> tuple[dict[str, Any], bytes]:
    if len(data) < _PREFIX.size + _DIGEST:
        raise _corrupt(key, f"it has only {len(data)} bytes")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise _corrupt(key, "it was not written by headrace")
    if version != FORMAT_VERSION:
        raise FormatVersionUnsupported(
            f"{key} has log format {version}; this release reads {FORMAT_VERSION}: use the release that wrote it",
            details={"key": key, "found": version, "supported": FORMAT_VERSION},
        )
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise _corrupt(key, "its checksum does not match its bytes")
    end = _PREFIX.size + length
    try:
        header = orjson.loads(view[_PREFIX.size : end])
        stored = view[end:-_DIGEST]
        if header["codec"] == "none":
            body = bytes(stored)
        elif header["codec"] == "zstd":
            body = zstandard.ZstdDecompressor().decompress(stored, max_output_size=min(header["size"], _MAX_BODY))
        else:
            raise ValueError(f"unknown codec {header['codec']!r}")
        if len(body) != header["size"]:
            raise ValueError(f"{len(body)} bytes where {header['size']} were written")
    except (KeyError, TypeError, ValueError, zstandard.ZstdError) as error:
        raise _corrupt(key, f"it can't be read ({error})") from None
    return header, body


def _corrupt(key: str, why: str) -> CorruptObject:
    cure = "Nothing after it was read; restore the object from a copy of the bucket"
    if "/snap/" in key:
        cure = (
            "Restore it from a copy of the bucket; or, if a snapshot with a smaller number stands beside it, remove "
            "it: the next start recovers from that one and loses nothing"
        )
    return CorruptObject(f"{key} is corrupt: {why}. {cure}", details={"key": key})


def _pack(records: Iterable[bytes]) -> bytes:
    chunks = list(records)
    lengths = array.array("I", map(len, chunks))
    if sys.byteorder == "big":
        lengths.byteswap()
    return b"".join((lengths.tobytes(), *chunks))


def _unpack(body: bytes, count: int) -> list[bytes]:
    lengths = array.array("I")
    lengths.frombytes(body[: 4 * count])
    if sys.byteorder == "big":
        lengths.byteswap()
    if len(lengths) != count:
        raise ValueError(f"{len(lengths)} records where {count} were written")
    ends = list(itertools.accumulate(lengths, initial=4 * count))
    if ends[-1] != len(body):
        raise ValueError(f"records end at byte {ends[-1]} of {len(body)}")
    return [body[start:end] for start, end in itertools.pairwise(ends)]
