"""One deadline for a request and everything it causes: from the caller's wish, the router's default and the versions'
timeouts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cluster.errors import InvalidInput

__all__ = ["Deadline", "parse_seconds", "parse_timeout_microseconds"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at`: monotonic seconds after which nobody waits; `wall`: the same moment as seconds since the epoch."""

    at: float
    wall: float

    @classmethod
    def after(cls, timeout_s: float, *, monotonic: float, now: float) -> Deadline:
        return cls(monotonic + timeout_s, now + timeout_s)

    @classmethod
    def until(cls, wall: float, *, monotonic: float, now: float) -> Deadline:
        """A deadline that came from another process, as wall time."""
        return cls(monotonic + (wall - now), wall)

    def remaining(self, monotonic: float) -> float:
        """Seconds left; 0 when it has passed."""
        return max(0.0, self.at - monotonic)


def parse_seconds(text: str) -> float | None:
    """`x-request-timeout-seconds`. Zero or less means that the caller sets no limit (Ray Serve reads it so too).

    Raises InvalidInput for anything that is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(
            f"x-request-timeout-seconds must be a number of seconds, not '{text[:40]}'",
            details={"header": "x-request-timeout-seconds"},
        )
    return value if value > 0 else None


def parse_timeout_microseconds(value: object) -> float | None:
    """The Open Inference Protocol's `timeout` parameter (microseconds, as Triton defines it), in seconds. 0: no
    limit."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidInput(f"parameters.timeout must be a number of microseconds, not {value!r:.40}")
    return value / 1e6 if value > 0 else None
