"""Events as JSON and back. Each record names its event; unknown fields are tolerated, unknown events are not.

Unknown fields may come from a later release that only added them; an unknown event would lose a fact, so it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import orjson

from cluster.errors import CorruptObject, FormatVersionUnsupported
from pipelines.engine.events import EVENTS, Event

__all__ = ["FORMAT", "decode", "encode", "from_dict", "to_dict"]

FORMAT = 1
"""Version of the record format; written into snapshots, and into the log by the run store."""


def _plan(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((f.name, f.default) for f in fields(cls))


_FIELDS: dict[type[Any], tuple[tuple[str, Any], ...]] = {cls: _plan(cls) for cls in EVENTS.values()}
_NAMES: dict[str, frozenset[str]] = {name: frozenset(f for f, _ in _FIELDS[cls]) for name, cls in EVENTS.items()}
_REQUIRED: dict[str, tuple[str, ...]] = {
    name: tuple(f for f, default in _FIELDS[cls] if default is MISSING) for name, cls in EVENTS.items()
}
_TUPLES = frozenset({"kept", "nested", "partial", "parent"})
_WITH_TUPLES = frozenset(name for name, names in _NAMES.items() if names & _TUPLES)
_ALLOWED: dict[str, frozenset[str]] = {name: names | {"e"} for name, names in _NAMES.items()}


def to_dict(event: Event) -> dict[str, Any]:
    """`{"e": name, field: value, …}`; fields that have their default are left out."""
    cls = type(event)
    out: dict[str, Any] = {"e": cls.__name__}
    for name, default in _FIELDS[cls]:
        value = getattr(event, name)
        if value is not default and value != default:
            out[name] = value
    return out


def encode(event: Event) -> bytes:
    """One event as JSON bytes."""
    return orjson.dumps(to_dict(event))


def from_dict(raw: Mapping[str, Any]) -> Event:
    """The inverse of `to_dict`. Raises `FormatVersionUnsupported` for an unknown event, else `CorruptObject`."""
    name = raw.get("e")
    cls = EVENTS.get(name) if isinstance(name, str) else None
    if cls is None or name is None:
        raise FormatVersionUnsupported(
            f"the log holds an event {name!r} that this release does not know: it was written by a later one"
        )
    if name not in _WITH_TUPLES and not raw.keys() - _ALLOWED[name]:
        # The common case, without copying twice: recovery decodes hundreds of thousands of these.
        values = dict(raw)
        del values["e"]
        try:
            plain: Event = cls(**values)
            return plain
        except TypeError:
            pass  # a field is missing: said below
    known = _NAMES[name]
    values = {key: value for key, value in raw.items() if key in known}
    missing = [key for key in _REQUIRED[name] if key not in values]
    if missing:
        raise CorruptObject(f"the log holds a {name} without {', '.join(missing)}")
    for key in _TUPLES & values.keys():
        if values[key] is not None:
            values[key] = tuple(values[key])
    event: Event = cls(**values)
    return event


def decode(data: bytes | bytearray | memoryview) -> Event:
    """One event from JSON bytes. Raises as `from_dict`; bytes that are not JSON are a `CorruptObject`."""
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise CorruptObject(f"a record of the log is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CorruptObject("a record of the log is not a JSON object")
    return from_dict(raw)
