"""Ports for time and identity, so that pure code never reads a clock or a random source itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Clock", "IdSource", "ManualClock", "SystemClock", "SystemIds"]


class Clock(Protocol):
    """Wall time for records and deadlines; monotonic time for durations. Both in seconds."""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...


class IdSource(Protocol):
    """Unique, time-ordered, lower-case identifiers of 26 characters (ULID, Crockford base 32)."""

    def ulid(self) -> str: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that moves only when told to, for tests and simulations."""

    time_s: float = 1_700_000_000.0

    def now(self) -> float:
        return self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a clock does not go back (asked for {seconds} s)")
        self.time_s += seconds


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass
class SystemIds:
    """ULIDs (https://github.com/ulid/spec) from a clock and a source of random bytes."""

    clock: Clock = field(default_factory=SystemClock)
    entropy: Callable[[int], bytes] = os.urandom

    def ulid(self) -> str:
        value = (int(self.clock.now() * 1000) << 80) | int.from_bytes(self.entropy(10), "big")
        chars = []
        for _ in range(26):
            chars.append(_ALPHABET[value & 31])
            value >>= 5
        return "".join(reversed(chars))
