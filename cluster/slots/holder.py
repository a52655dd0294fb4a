"""A shard's side of shared slots: what it asks for and holds, and what of that the arbiter does not know yet. Pure."""

from __future__ import annotations

from collections import deque

from cluster.slots.protocol import Ask, Grant, Hello, Reply, Report

__all__ = ["Holder"]

MOST_OPS = 5000
"""In one report, so that a message stays small; the rest follows with the next."""


class Holder:
    """One life of a shard. `report` says what to send, `take` what an answer changes; both may be called at any time,
    and an answer that never comes is made good by the next report."""

    def __init__(self, *, shard: int, life: int, fence: int = 0, shards: int = 1) -> None:
        """`fence`: the highest that this shard, in any of its lives, has used. `shards`: how many hold runs."""
        self.shard = shard
        self.shards = shards
        self.life = life
        self.arbiter = 0
        self.asked: dict[int, Ask] = {}
        self.held: dict[int, tuple[Ask, int]] = {}
        self._fence = fence
        self._hello: Hello | None = None
        self._first = 1
        self._ops: deque[Ask | int] = deque()
        self._seen = 0

    @property
    def pending(self) -> bool:
        """Whether the arbiter has something to learn."""
        return bool(self._ops) or self._hello is not None or not self.arbiter

    @property
    def greets(self) -> bool:
        """Whether the next report says all that is held: who sends it must still own the shard's log."""
        return self._hello is not None

    def ask(self, ask: Ask) -> None:
        """Something wants to start."""
        self.asked[ask.ticket] = ask
        if self.arbiter:
            self._ops.append(ask)

    def done(self, ticket: int) -> None:
        """It has ended, or does not want to start any more."""
        known = self.asked.pop(ticket, None) or self.held.pop(ticket, None)
        if known is not None and self.arbiter:
            self._ops.append(ticket)

    def report(self) -> Report:
        """What to send now."""
        return Report(
            shard=self.shard,
            life=self.life,
            arbiter=self.arbiter,
            first=self._first,
            ops=tuple(op for op, _ in zip(self._ops, range(MOST_OPS), strict=False)),
            seen=self._seen,
            hello=self._hello,
            shards=self.shards,
        )

    def take(self, reply: Reply) -> list[Grant]:
        """An answer came: the grants in it that are new and still wanted. Late and repeated ones change nothing."""
        if reply.life != self.life or reply.arbiter < self.arbiter:
            return []
        if reply.arbiter > self.arbiter:
            self._greet(reply.arbiter)
            return []
        if not reply.known:
            return []
        self._hello = None
        while self._ops and self._first <= reply.applied:
            self._ops.popleft()
            self._first += 1
        fresh: list[Grant] = []
        for grant in reply.grants:
            if grant.number != self._seen + 1:
                continue
            self._seen = grant.number
            self._fence = max(self._fence, grant.fence)
            ask = self.asked.pop(grant.ticket, None)
            if ask is not None:
                self.held[grant.ticket] = (ask, grant.fence)
                fresh.append(grant)
        return fresh

    def _greet(self, arbiter: int) -> None:
        """Another arbiter is there, which knows nothing: from now on only its answers count."""
        self.arbiter = arbiter
        self._hello = Hello(asks=tuple(self.asked.values()), held=tuple(self.held.values()), fence=self._fence)
        self._ops.clear()
        self._first, self._seen = 1, 0
