"""Values on their way into and out of a step: what JSON can hold, files by reference, large results as blobs.

Knows no Ray and no bucket: blobs come through the two small protocols below.
"""

from __future__ import annotations

import dataclasses
import math
import mimetypes
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import orjson

from pipelines.executor.errors import OutputTooLarge, ResultNotSerialisable

__all__ = [
    "BlobReader",
    "Blobs",
    "File",
    "blob_bytes",
    "is_reference",
    "pack_output",
    "references",
    "resolve",
    "to_json",
]

MAX_DEPTH = 200


class BlobReader(Protocol):
    """Blocking read access to blobs by reference."""

    def get_blocking(self, reference: Mapping[str, Any]) -> bytes:
        """The bytes behind a reference. Raises `ObjectNotFound`, `CorruptObject` or `StorageUnavailable`."""
        ...

    def fetch_blocking(self, reference: Mapping[str, Any], path: Path) -> None:
        """The same, written to a local file without holding it in memory."""
        ...


class Blobs(BlobReader, Protocol):
    """Blocking read and write access, as a worker has it."""

    def put_blocking(self, data: bytes, *, media_type: str, name: str) -> dict[str, Any]:
        """Stores the bytes under their hash (storing them twice is one blob) and returns the reference."""
        ...

    def put_file_blocking(self, path: Path, *, media_type: str, name: str) -> dict[str, Any]:
        """The same for a local file of any size."""
        ...

    def put_log_blocking(self, key: str, text: bytes) -> None:
        """Writes a log under its key (`log_keys.py`), over what was there. Raises `StorageError`."""
        ...

    def put_last_log_blocking(self, key: str, text: bytes) -> None:
        """The same, for the last time under this key: within `logs_together` it is only begun."""
        ...

    def logs_together(self) -> AbstractContextManager[None]:
        """Last logs within it are written side by side and are there at its end; what cannot be written is lost."""
        ...


class File:
    """A file of a run as a script sees it. The bytes are fetched when they are first asked for.

    `name`, `media_type` and `size` (bytes) come from the reference; `path` is a local copy that lives as long as
    the attempt.
    """

    __slots__ = ("_blobs", "_data", "_path", "_scratch", "reference")

    def __init__(self, reference: Mapping[str, Any], blobs: BlobReader, scratch: Scratch):
        self.reference = dict(reference)
        self._blobs = blobs
        self._scratch = scratch
        self._data: bytes | None = None
        self._path: Path | None = None

    @property
    def name(self) -> str:
        return str(self.reference.get("name") or self.reference["$blob"][:12])

    @property
    def media_type(self) -> str:
        return str(self.reference.get("media_type") or "application/octet-stream")

    @property
    def size(self) -> int:
        return int(self.reference.get("size") or 0)

    def read_bytes(self) -> bytes:
        """The whole content."""
        if self._data is None:
            self._data = self._blobs.get_blocking(self.reference)
        return self._data

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content as text."""
        return self.read_bytes().decode(encoding)

    @property
    def path(self) -> Path:
        """A local copy with the file's own name."""
        if self._path is None:
            folder = self._scratch() / self.reference["$blob"][:16]
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / safe_name(self.name)
            self._blobs.fetch_blocking(self.reference, path)
            self._path = path
        return self._path

    def __repr__(self) -> str:
        return f"File(name={self.name!r}, media_type={self.media_type!r}, size={self.size})"


Scratch = Callable[[], Path]
"""Gives the attempt's own folder, made on first use."""


def safe_name(name: str) -> str:
    """A file name without folders or surprises, for a local copy."""
    return re.sub(r"[^\w.\-]+", "_", Path(name).name).lstrip(".") or "file"


def is_reference(value: Any) -> bool:
    """Whether a JSON value is a blob reference."""
    return isinstance(value, Mapping) and isinstance(value.get("$blob"), str)


def references(value: Any) -> list[Mapping[str, Any]]:
    """All blob references inside a JSON value, in the order they stand."""
    if is_reference(value):
        return [value]
    if isinstance(value, Mapping):
        return [ref for item in value.values() for ref in references(item)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in references(item)]
    return []


def resolve(
    value: Any, read: Callable[[Mapping[str, Any]], bytes], make_file: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """The value with spilled parts read back in, and every other reference turned into `make_file(reference)`."""
    if is_reference(value):
        if value.get("spilled"):
            return resolve(orjson.loads(read(value)), read, make_file)
        return make_file(value)
    if isinstance(value, Mapping):
        return {key: resolve(item, read, make_file) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, read, make_file) for item in value]
    return value


def blob_bytes(value: Any) -> int:
    """Bytes behind all references of a value."""
    return sum(int(ref.get("size") or 0) for ref in references(value))


def to_json(value: Any, path: str = "output", depth: int = 0) -> Any:
    """The value as JSON types. Tuples, numpy values, dataclasses and `File`s are converted.

    Raises `ResultNotSerialisable` with the place (`output.items[3]`) and the type of the first part that has no JSON
    form.
    """
    if value is None or isinstance(value, str | bool):
        return value if type(value) in (str, bool, type(None)) else str(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise _refused(path, value, "an integer over 64 bits: return it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(path, value, f"{value}, which JSON cannot hold")
        return float(value)
    if isinstance(value, File):
        return value.reference
    if depth > MAX_DEPTH:
        raise _refused(path, value, f"nested over {MAX_DEPTH} levels deep (does it contain itself?)")
    if isinstance(value, Mapping):
        out = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _refused(path, key, f"a key of type {type(key).__name__}: keys must be text")
            out[key] = to_json(item, f"{path}.{key}", depth + 1)
        return out
    if isinstance(value, list | tuple):
        return [to_json(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, bytes | bytearray | memoryview):
        raise _refused(path, value, "bytes: store them with context.save(data, name=…) and return what it gives you")
    if isinstance(value, Path):
        raise _refused(path, value, "a path, which means nothing on another node: return context.save(path)")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return to_json(fields, path, depth + 1)
    if type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tolist"):
        return to_json(value.tolist(), path, depth + 1)
    raise _refused(path, value, "not text, number, bool, None, list or mapping")


def _refused(path: str, value: Any, why: str) -> ResultNotSerialisable:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return ResultNotSerialisable(
        f"the result cannot be stored: {path} (type {kind}) is {why}", details={"path": path, "type": kind}
    )


def pack_output(
    value: Any, *, threshold: int, limit: int, put: Callable[[bytes, str, str], dict[str, Any]], name: str = "output"
) -> Any:
    """JSON of a step's result; over `threshold` bytes it is stored as a blob and a reference marked spilled returned.

    Raises `ResultNotSerialisable`, `OutputTooLarge` (over `limit` bytes) or what `put` raises.
    """
    plain = to_json(value)
    if plain is None or isinstance(plain, bool | int | float):
        return plain
    try:
        data = orjson.dumps(plain)
    except (TypeError, ValueError) as error:
        # Lone surrogates and the like: text that has no UTF-8 form.
        raise ResultNotSerialisable(
            f"the result cannot be stored as JSON: {error}", details={"path": "output"}
        ) from None
    if len(data) <= threshold:
        return plain
    if len(data) > limit:
        raise OutputTooLarge(
            f"the result has {len(data)} bytes of JSON, the limit is {limit}: store large data with context.save() "
            "and return the reference",
            details={"size": len(data), "limit": limit},
        )
    return {**put(data, "application/json", f"{name}.json"), "spilled": True}


def media_type_of(name: str) -> str:
    """The media type that a file name suggests."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
