"""Decides which waiting items form the next batch, when it starts, and what is refused.

Pure: knows no asyncio, no model and no clock; every call gets `now` (seconds of one monotonic clock).

Rules, all of them held by property tests:

- Order is by `urgency = arrival + level * ageing_s`, smallest first. An item of level 2 is treated as if it had come
  `2 * ageing_s` later, and never worse than that, so nothing starves.
- A batch holds items of one size bucket (powers of two above `min_bucket`), so that padding at most doubles the work.
- A batch may start when its bucket can fill it, or when its most urgent item has waited `max_queue_delay_s`.
- Work that cannot finish in time is refused before it costs anything. "Cannot" is judged by the best service times
  seen lately, so that a slow spell never refuses work that might have made it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

from cluster.errors import DeadlineExceeded, Overloaded

__all__ = ["Batch", "BatchPolicy", "Planner", "ServiceTimes", "Ticket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """`queue` bounds the items that wait; `parallelism` is how many batches the model runs at once."""

    max_batch_size: int = 1
    max_queue_delay_s: float = 0.002
    priority_levels: int = 3
    queue: int = 1024
    parallelism: int = 1
    ageing_s: float = 2.0
    min_bucket: int = 32

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "priority_levels", "queue", "parallelism", "min_bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_queue_delay_s", "ageing_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def level(self, priority: int | None) -> int:
        """The level of a request: 0 is the most urgent; None is the middle one; out of range is clamped."""
        if priority is None:
            return self.priority_levels // 2
        return min(max(priority, 0), self.priority_levels - 1)

    def bucket(self, size: int) -> int:
        """Sizes up to `min_bucket` share bucket 0; each further bucket doubles the bound."""
        return max(0, (max(size, 1) - 1).bit_length() - (self.min_bucket - 1).bit_length())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One waiting item. `number` is unique and grows with arrival; `deadline_s` is on the planner's clock."""

    number: int
    level: int
    bucket: int
    arrival_s: float
    urgency: float
    deadline_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tickets to run together now, most urgent first, and those whose deadline can no longer be met."""

    tickets: tuple[Ticket, ...]
    expired: tuple[Ticket, ...] = ()


@dataclass(slots=True)
class ServiceTimes:
    """What batches took lately: the last `keep` of them, not older than `max_age_s`.

    Old figures are dropped so that a host that was slow once (a cold cache, a busy node) does not refuse work for ever.
    """

    keep: int = 64
    max_age_s: float = 60.0
    _seen: deque[tuple[float, int, float]] = field(default_factory=deque)

    def add(self, now: float, items: int, seconds: float) -> None:
        """One finished batch of `items` that took `seconds`."""
        self._seen.append((now, items, max(seconds, 1e-9)))
        while len(self._seen) > self.keep:
            self._seen.popleft()

    def _recent(self, now: float) -> list[tuple[int, float]]:
        while self._seen and self._seen[0][0] < now - self.max_age_s:
            self._seen.popleft()
        return [(items, seconds) for _, items, seconds in self._seen]

    def fastest_s(self, now: float) -> float:
        """The shortest recent batch; 0 when nothing is known, so that nothing is refused on a guess."""
        return min((seconds for _, seconds in self._recent(now)), default=0.0)

    def best_rate(self, now: float) -> float | None:
        """Items per second of the most productive recent batch; None when nothing is known."""
        return max((items / seconds for items, seconds in self._recent(now)), default=None)

    def mean_s(self, now: float) -> float:
        """Mean seconds of a recent batch; 0 when nothing is known."""
        recent = self._recent(now)
        return sum(seconds for _, seconds in recent) / len(recent) if recent else 0.0


class Planner:
    """The queue of one host. `admit`, `cancel`, `next_batch`, `finished`; nothing else changes it."""

    def __init__(self, policy: BatchPolicy):
        self.policy = policy
        self.times = ServiceTimes()
        self._number = 0
        self._waiting: dict[int, Ticket] = {}
        self._order: list[tuple[float, int]] = []
        """(urgency, number) of all waiting tickets, sorted."""
        self._buckets: dict[int, list[tuple[float, int]]] = {}
        """The same, by bucket; no bucket is empty."""
        self._arrivals: dict[int, list[tuple[float, int]]] = {}
        """(arrival, number) by bucket, for the queue delay."""
        self._deadlines: list[tuple[float, int]] = []
        """(deadline, number) of the waiting tickets that have one."""
        self._running = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Batches that were handed out and not yet reported as finished."""
        return self._running

    def admit(
        self, now: float, *, priority: int | None = None, size: int = 1, deadline_s: float | None = None
    ) -> Ticket:
        """Let one item wait.

        Raises `Overloaded` (queue full, or its deadline would pass in this queue; with `retry_after_s`) or
        `DeadlineExceeded` (its deadline has passed, or is shorter than any batch has taken lately).
        """
        policy = self.policy
        level = policy.level(priority)
        urgency = now + level * policy.ageing_s
        if len(self._waiting) >= policy.queue:
            wait = self.drain_s(now)
            raise Overloaded(
                f"the queue is full ({policy.queue} items wait); come back in {wait:.2f} s", retry_after_s=wait
            )
        if deadline_s is not None:
            self._check_deadline(now, urgency, deadline_s)
        self._number += 1
        ticket = Ticket(
            number=self._number,
            level=level,
            bucket=policy.bucket(size),
            arrival_s=now,
            urgency=urgency,
            deadline_s=deadline_s,
        )
        self._waiting[ticket.number] = ticket
        insort(self._order, (urgency, ticket.number))
        insort(self._buckets.setdefault(ticket.bucket, []), (urgency, ticket.number))
        insort(self._arrivals.setdefault(ticket.bucket, []), (now, ticket.number))
        if deadline_s is not None:
            insort(self._deadlines, (deadline_s, ticket.number))
        return ticket

    def _check_deadline(self, now: float, urgency: float, deadline_s: float) -> None:
        left = deadline_s - now
        if left <= 0:
            raise DeadlineExceeded(f"the deadline passed {-left:.3f} s before the request could wait in line")
        fastest = self.times.fastest_s(now)
        if left < fastest:
            raise DeadlineExceeded(
                f"{left:.3f} s are left, and no batch has taken less than {fastest:.3f} s lately",
                details={"left_s": left, "needed_s": fastest},
            )
        queue_s = self._queue_s(now, bisect_left(self._order, (urgency, self._number + 1)))
        if left < queue_s + fastest:
            raise Overloaded(
                f"{left:.3f} s are left, but at least {queue_s + fastest:.3f} s of work stand before the answer",
                details={"left_s": left, "needed_s": queue_s + fastest},
                retry_after_s=queue_s + fastest - left,
            )

    def _queue_s(self, now: float, ahead: int) -> float:
        """The least time in which `ahead` waiting items can be done; 0 when no service time is known."""
        rate = self.times.best_rate(now)
        return 0.0 if rate is None else ahead / (rate * self.policy.parallelism)

    def drain_s(self, now: float) -> float:
        """An estimate of how long all that waits will take: the Retry-After of a refusal. At least 0.05 s."""
        batches = -(-len(self._waiting) // self.policy.max_batch_size) + self._running
        return max(0.05, batches * self.times.mean_s(now) / self.policy.parallelism)

    def cancel(self, ticket: Ticket) -> bool:
        """Take out this ticket and no other. False when it does not wait any more."""
        if ticket.number not in self._waiting:
            return False
        self._remove(ticket)
        return True

    def _remove(self, ticket: Ticket) -> None:
        del self._waiting[ticket.number]
        _discard(self._order, (ticket.urgency, ticket.number))
        if ticket.deadline_s is not None:
            _discard(self._deadlines, (ticket.deadline_s, ticket.number))
        for index, entry in (
            (self._buckets, (ticket.urgency, ticket.number)),
            (self._arrivals, (ticket.arrival_s, ticket.number)),
        ):
            _discard(index[ticket.bucket], entry)
            if not index[ticket.bucket]:
                del index[ticket.bucket]

    def next_batch(self, now: float) -> Batch | None:
        """The batch to start now, or None: see `wake_at` for when to ask again. Counts it as running if not empty.

        A returned batch may be empty of tickets and only name expired ones, which nothing will run.
        """
        expired = self._take_expired(now)
        bucket = self._ready_bucket(now) if self._running < self.policy.parallelism else None
        if bucket is None:
            return Batch(tickets=(), expired=expired) if expired else None
        numbers = [number for _, number in self._buckets[bucket][: self.policy.max_batch_size]]
        tickets = tuple(self._waiting[number] for number in numbers)
        for ticket in tickets:
            self._remove(ticket)
        self._running += 1
        return Batch(tickets=tickets, expired=expired)

    def _take_expired(self, now: float) -> tuple[Ticket, ...]:
        """Tickets whose deadline has come, or would come before the fastest batch could end."""
        fastest = self.times.fastest_s(now)
        expired = []
        for deadline, number in self._deadlines:
            if deadline > now and deadline >= now + fastest:
                break
            expired.append(self._waiting[number])
        for ticket in expired:
            self._remove(ticket)
        return tuple(expired)

    def _ready_bucket(self, now: float) -> int | None:
        best: tuple[tuple[float, int], int] | None = None
        for bucket, entries in self._buckets.items():
            full = len(entries) >= self.policy.max_batch_size
            # The same sum as in wake_at: with a subtraction instead, rounding could leave a bucket never ready.
            if (full or self._arrivals[bucket][0][0] + self.policy.max_queue_delay_s <= now) and (
                best is None or entries[0] < best[0]
            ):
                best = (entries[0], bucket)
        return None if best is None else best[1]

    def wake_at(self, now: float) -> float | None:
        """When `next_batch` may have something although nothing arrives or finishes; None when never."""
        times = [self._deadlines[0][0]] if self._deadlines else []
        if self._running < self.policy.parallelism:
            if any(len(entries) >= self.policy.max_batch_size for entries in self._buckets.values()):
                return now
            times += [entries[0][0] + self.policy.max_queue_delay_s for entries in self._arrivals.values()]
        return max(now, min(times)) if times else None

    def finished(self, now: float, items: int, seconds: float, *, observe: bool = True) -> None:
        """A batch of `items` came back after `seconds`. `observe=False` keeps it out of the service times."""
        if self._running < 1:
            raise ValueError("a batch was reported finished, but none is running")
        self._running -= 1
        if observe and items > 0:
            self.times.add(now, items, seconds)

    def validate(self) -> None:
        """Raise AssertionError when the indexes disagree. For tests."""
        assert [n for _, n in self._order] == sorted(self._waiting, key=lambda n: (self._waiting[n].urgency, n))
        assert sum(map(len, self._buckets.values())) == sum(map(len, self._arrivals.values())) == len(self._waiting)
        assert [n for _, n in self._deadlines] == [
            n for _, n in sorted((t.deadline_s, n) for n, t in self._waiting.items() if t.deadline_s is not None)
        ]
        assert all(self._buckets.values())
        assert all(self._arrivals.values())
        assert 0 <= self._running <= self.policy.parallelism
        assert len(self._waiting) <= self.policy.queue


def _discard(entries: list[tuple[float, int]], entry: tuple[float, int]) -> None:
    position = bisect_left(entries, entry)
    if position >= len(entries) or entries[position] != entry:
        raise ValueError(f"{entry} is not in the queue")
    del entries[position]
