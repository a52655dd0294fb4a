"""When several short steps may travel in one Ray task, and how many: pure rules, no Ray and no clock.

A Ray task costs one to two milliseconds of CPU on its way there and back, many times what a short step does itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["Durations", "SharingRules", "group"]

_KINDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingRules:
    """`short_s`: steps whose mean is at most this share tasks; 0 switches sharing off. `task_s`, `max_items`: how much
    expected work, and how many steps, one task takes at most. `worth_s`: work that is worth a task of its own; less
    than that waits for the next answer while `eager` tasks are out. `hold_s`: after this time a task starts no further
    step and hands the rest back; one that says nothing for `silence_s` more is killed. `max_bytes`: an attempt with a
    larger input goes alone.
    """

    short_s: float = 0.005
    task_s: float = 0.02
    worth_s: float = 0.005
    max_items: int = 16
    eager: int = 2
    hold_s: float = 0.25
    silence_s: float = 5.0
    max_bytes: int = 32 * 1024


class Durations:
    """A moving mean of how long each kind of step takes; a kind is any hashable value."""

    def __init__(self, *, weight: float = 0.2, min_seen: int = 8):
        self._weight = weight
        self._min_seen = min_seen
        self._known: dict[Hashable, tuple[float, int]] = {}

    def observe(self, kind: Hashable, seconds: float) -> None:
        """One attempt of this kind took so long. A single long one makes the kind long for its next dozens."""
        mean, seen = self._known.get(kind, (seconds, 0))
        if not seen and len(self._known) >= _KINDS:
            self._known.clear()
        self._known[kind] = (mean + self._weight * (seconds - mean), seen + 1)

    def mean(self, kind: Hashable) -> float | None:
        """Seconds, or None while too few have been seen."""
        mean, seen = self._known.get(kind, (0.0, 0))
        return mean if seen >= self._min_seen else None


def group(expected: Sequence[float], *, out: int, slots: int, idle: int, rules: SharingRules) -> list[int]:
    """How many of the waiting steps, from the front, each next task takes; what is not named goes on waiting.

    `expected`: their seconds. `out`: shared tasks that have not answered. `slots`: tasks of this shape that the
    cluster runs at a time. `idle`: how many of these are free now: work that is worth it is spread over them.
    """
    sizes: list[int] = []
    at = 0
    count = len(expected)
    # Twice the slots, so that a worker which ends one task has the next, and an autoscaler sees that more are wanted.
    room = 2 * max(slots, 1) - out
    spread = min(max(idle, 1), max(int(sum(expected) / rules.worth_s), 1))
    while at < count and len(sizes) < room:
        most = min(rules.max_items, -(-(count - at) // max(spread - len(sizes), 1)))
        size, work = 1, expected[at]
        while size < most and at + size < count and work + expected[at + size] <= rules.task_s:
            work += expected[at + size]
            size += 1
        small = work < rules.worth_s and size < rules.max_items
        if small and out + len(sizes) >= rules.eager:
            break
        sizes.append(size)
        at += size
    return sizes
