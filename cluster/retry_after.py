"""How long a server asks to be left alone: the Retry-After header of RFC 9110, 10.2.3."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

__all__ = ["MAX_RETRY_AFTER_S", "parse_retry_after"]

MAX_RETRY_AFTER_S = 86_400.0
"""Nobody is made to wait longer than a day by one header."""


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date, 0 to a day; None when there is none or it is unreadable.

    `now`: seconds since the epoch.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None
