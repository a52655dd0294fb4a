"""Reads JSON of callers and writes it for them, whatever models and users have put into it. Pure.

orjson is strict when it writes: it takes no text with half a character (a lone surrogate, which a model that is cut in
the middle of an emoji can produce), no number above 64 bits and nothing deeper than 254 levels. An answer must not be
lost to that. When it reads it rounds integers over 64 bits without a word, and a run's input must not become another.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from cluster.errors import InvalidInput

__all__ = ["dumps", "loads", "whole_characters"]

_TEXT_OR_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|(-?[0-9]+)([.eE][0-9.eE+-]*)?', re.DOTALL)
"""Of a JSON text: its strings, to pass over what they hold, and its numbers: those without a rest are integers."""
_MANY_DIGITS = re.compile(rb"[0-9]{19}")


def loads(raw: bytes, what: str) -> Any:
    """The value of a JSON text. Raises `InvalidInput` saying why `what` is none or what would change in it."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{what} is not JSON: {error}") from error
    if _MANY_DIGITS.search(raw):
        for found in _TEXT_OR_NUMBER.finditer(raw):
            # (Before int(): it refuses texts of thousands of digits.)
            digits, rest = found.groups()
            if digits and rest is None and (len(digits) > 20 or not -(2**63) <= int(digits) < 2**64):
                shown = digits[:40].decode() + ("…" if len(digits) > 40 else "")
                raise InvalidInput(f"{what} holds an integer over 64 bits, {shown}: write that as text")
    return value


def dumps(value: Any, *, option: int = 0) -> bytes:
    """`value` as JSON in UTF-8; what JSON does not know becomes text. `option`: orjson's."""
    try:
        return orjson.dumps(value, default=str, option=option)
    except TypeError:
        return whole_characters(json.dumps(value, ensure_ascii=False, default=str)).encode()


def whole_characters(text: str) -> str:
    """The text as UTF-8 can carry it: halves that stand together joined, a lone half replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
