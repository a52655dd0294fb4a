"""What a log can hold: JSON that reads back as it was, with room for the records that will stand around it. Pure.

Everything from outside (inputs, definitions, results, errors, answers to approvals) passes here before it becomes a
fact: what only turns out to be no JSON when the fact is written down stops the whole run store, and again after each
restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from cluster.errors import InvalidInput

__all__ = ["MAX_DEPTH", "encoded", "forced", "text"]

MAX_DEPTH = 200
"""Levels of lists and mappings in one value. orjson writes 254: records, snapshots and answers put some more around."""
_ROOM = 254 - MAX_DEPTH
_WHY = (
    ("Recursion limit", f"it is nested over {MAX_DEPTH} levels deep"),
    ("Integer exceeds", "it holds an integer over 64 bits: write that as text"),
    ("surrogates", "it holds a text with half a character in it (a lone surrogate)"),
    ("Dict key", "it holds a key that is no text"),
)


def encoded(value: Any, what: str = "the value") -> bytes:
    """The value as JSON. Raises `InvalidInput` saying why `what` cannot be stored."""
    try:
        data = orjson.dumps(value)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            # It may be deep: then it has no room within as many levels as may stand around it.
            for _ in range(_ROOM):
                value = [value]
            orjson.dumps(value)
        return data
    except (TypeError, ValueError) as error:
        why = next((text for sign, text in _WHY if sign in str(error)), str(error))
        raise InvalidInput(f"{what} cannot be stored: {why}") from None


def forced(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value as well as JSON can hold it: what it cannot hold becomes text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else text(value)
    if depth and isinstance(value, Mapping):
        return {text(key): forced(child, depth - 1) for key, child in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [forced(child, depth - 1) for child in value]
    return text(value) if depth else "…"


def text(value: Any) -> str:
    """As text that has a UTF-8 form: halves of characters are written out (`\\udcff`), as for odd file names."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # str() of an object from outside runs its code
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"
