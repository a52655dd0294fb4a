"""How many shards of the run store there are, and were: which hold runs, and which may know an idempotency key. Pure.

A key belongs to the shard that its hash names among the shards of that time. When their number changes, most keys get
another home; a key that was used shortly before is then known to its former home only, which is asked first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.names import shard_of_key

__all__ = ["LOOK_BACK_S", "Layout", "Layouts"]

LOOK_BACK_S = 2 * 86_400.0
"""How long former homes are asked after a change: a key is known for one day, and shards learn of a change one by one,
by clocks that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """From `since` (wall time, seconds since the epoch) on, new runs go to the shards 0 to `shards` - 1."""

    shards: int
    since: float

    def to_dict(self) -> dict[str, Any]:
        return {"shards": self.shards, "since": self.since}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Layout:
        """The inverse of `to_dict`; fields of later releases are ignored."""
        return cls(shards=int(raw["shards"]), since=float(raw["since"]))


@dataclass(frozen=True, slots=True)
class Layouts:
    """All layouts of an environment, oldest first. `version` grows with every change; 0: nobody has said yet."""

    known: tuple[Layout, ...]
    version: int

    @classmethod
    def of(cls, known: Iterable[Layout]) -> Layouts:
        """A history that was written down: its length is its version."""
        layouts = tuple(known)
        return cls(layouts, len(layouts))

    @classmethod
    def guess(cls, shards: int) -> Layouts:
        """What a configuration says, until a run store tells the history."""
        return cls((Layout(shards=shards, since=0.0),), 0)

    @property
    def shards(self) -> int:
        """How many shards take new runs."""
        return self.known[-1].shards

    @property
    def total(self) -> int:
        """How many shards hold runs: those of former layouts go on with theirs."""
        return max(layout.shards for layout in self.known)

    def home(self, key: str) -> int:
        """The shard to which a new key belongs."""
        return shard_of_key(key, self.shards)

    def former_homes(self, key: str, *, now: float) -> list[int]:
        """Other shards that may know this key, the newest layout's first."""
        found = [self.home(key)]
        for layout, successor in reversed(list(zip(self.known, self.known[1:], strict=False))):
            if successor.since + LOOK_BACK_S <= now:
                break
            shard = shard_of_key(key, layout.shards)
            if shard not in found:
                found.append(shard)
        return found[1:]

    def to_wire(self) -> dict[str, Any]:
        """JSON-like, for answers and errors."""
        return {"version": self.version, "layouts": [layout.to_dict() for layout in self.known]}

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> Layouts:
        """The inverse of `to_wire`."""
        return cls(tuple(Layout.from_dict(layout) for layout in raw["layouts"]), int(raw["version"]))
