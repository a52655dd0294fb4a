"""Durations and sizes as people write them in YAML (`5m`, `2GiB`), parsed to seconds, milliseconds and bytes. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["Bytes", "Milliseconds", "Seconds", "parse_bytes", "parse_duration_s"]

_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_duration_s(value: Any) -> Any:
    """`90`, `"90"`, `"90s"`, `"1h30m"`, `"250ms"` → seconds. Anything that is not text is returned as it is, for
    pydantic to judge. Raises ValueError for other text."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    try:
        return float(text)
    except ValueError:
        pass
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{value!r} is not a duration: write seconds (90) or a text such as '250ms', '5m', '1h30m'")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _parse_duration_ms(value: Any) -> Any:
    if isinstance(value, str) and re.search(r"[a-z]", value.lower()):
        return parse_duration_s(value) * 1000
    return parse_duration_s(value)


def parse_bytes(value: Any) -> Any:
    """`1048576`, `"2GiB"`, `"500MB"`, `"1.5 GiB"` → bytes (iB: powers of 1024, B: of 1000, as in SI). Anything that is
    not text is returned as it is. Raises ValueError for other text."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match is None:
        raise ValueError(f"{value!r} is not a size: write bytes or a text such as '500MB' or '2GiB'")
    unit = match.group(2).lower()
    base = 1024 if "i" in unit else 1000
    return int(float(match.group(1)) * base ** _POWERS[unit.rstrip("b").rstrip("i")])


Seconds = Annotated[float, BeforeValidator(parse_duration_s)]
"""A float in seconds; `5m` is accepted."""
Milliseconds = Annotated[float, BeforeValidator(_parse_duration_ms)]
"""A float in milliseconds; `5ms` and `1s` are accepted."""
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A number of bytes; `2GiB` is accepted."""
