"""Writes JSON for callers, whatever models and users have put into it. Pure.

orjson is strict: it takes no text with half a character (a lone surrogate, which a model that is cut in the middle of
an emoji can produce), no number above 64 bits and nothing deeper than 254 levels. An answer must not be lost to that.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["dumps", "whole_characters"]


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
