"""Grants slots to shards: never more than a limit, in the order of rank, under fences that only grow. Pure.

A waiting ask stands in line for one of its needs that is full. When a slot of that becomes free the first in line is
looked at again: it starts, or joins the line of another need that is full, and the next one is looked at. So an ask
that waits for a lock holds no slot of its queue, and the first of every line is there because its need is full.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

from cluster.slots.protocol import Ask, Grant, Hello, Reply, Report

__all__ = ["Arbiter"]


@dataclass(slots=True, eq=False)
class _Entry:
    """One ask. `fence` is set while it is granted; `gone` when it counts no more."""

    shard: int
    ask: Ask
    order: int
    fence: int = 0
    gone: bool = False

    def __lt__(self, other: _Entry) -> bool:
        return (self.ask.rank, self.order) < (other.ask.rank, other.order)


@dataclass(slots=True)
class _Shard:
    life: int
    applied: int = 0
    granted: int = 0
    unseen: list[Grant] = field(default_factory=list)
    entries: dict[int, _Entry] = field(default_factory=dict)


class Arbiter:
    """One life: `epoch` is higher than that of every arbiter before. Until all `shards` have said what they hold,
    nothing is granted."""

    def __init__(self, *, epoch: int, shards: int) -> None:
        self.epoch = epoch
        self.shards = shards
        self.fence = 0
        self.told: set[int] = set()
        """Shards with grants since somebody last looked; the shell clears it."""
        self._shards: dict[int, _Shard] = {}
        self._held: dict[str, int] = {}
        self._lines: dict[str, list[_Entry]] = {}
        self._unplaced: list[_Entry] = []
        self._order = 0

    @property
    def ready(self) -> bool:
        """Whether every shard has said what it holds."""
        return all(shard in self._shards for shard in range(self.shards))

    @property
    def missing(self) -> list[int]:
        """Shards that have not said what they hold."""
        return [shard for shard in range(self.shards) if shard not in self._shards]

    def resize(self, shards: int) -> None:
        """The environment has another number of shards now."""
        self.shards = shards
        self._place()

    def greets(self, report: Report) -> bool:
        """Whether taking this report would replace what is known of its shard: only an owner of the log may do so."""
        known = self._shards.get(report.shard)
        return report.arbiter == self.epoch and report.hello is not None and (known is None or known.life < report.life)

    def handle(self, report: Report) -> Reply | None:
        """Take a report; None when it comes from a life of its shard that has ended."""
        if report.arbiter != self.epoch:
            return Reply(arbiter=self.epoch, life=report.life, known=False)
        known = self._shards.get(report.shard)
        if known is None or known.life < report.life:
            if report.hello is None:
                return None  # it overtook the hello, which is on its way or was lost, and then comes again
            known = self._welcome(report.shard, report.life, report.hello, known)
        elif known.life > report.life:
            return None
        for number, op in enumerate(report.ops, start=report.first):
            if number == known.applied + 1:
                known.applied = number
                if isinstance(op, Ask):
                    self._asked(report.shard, known, op)
                else:
                    self._done(known, op)
        known.unseen = [grant for grant in known.unseen if grant.number > report.seen]
        return Reply(arbiter=self.epoch, life=known.life, known=True, applied=known.applied, grants=tuple(known.unseen))

    def has_news(self, report: Report) -> bool:
        """Whether there are grants that the sender of this report has not seen."""
        known = self._shards.get(report.shard)
        return known is not None and known.life == report.life and known.granted > report.seen

    def view(self) -> list[dict[str, Any]]:
        """What is held and waited for, by name: `{name, held: [{by, fence}], waiting: [by]}`, first in line first."""
        rows: dict[str, dict[str, Any]] = {}
        for shard in self._shards.values():
            for entry in sorted(shard.entries.values()):
                for name, limit in entry.ask.needs:
                    row = rows.setdefault(name, {"name": name, "limit": limit, "held": [], "waiting": []})
                    if entry.fence:
                        row["held"].append({"by": entry.ask.about, "fence": entry.fence})
                    else:
                        row["waiting"].append(entry)
        for row in rows.values():
            row["waiting"] = [entry.ask.about for entry in sorted(row["waiting"])]
        return [rows[name] for name in sorted(rows)]

    def check(self) -> None:
        """Raise AssertionError when memory contradicts itself. For tests: it walks over everything."""
        held: dict[str, int] = {}
        fences: set[int] = set()
        for shard in self._shards.values():
            for entry in shard.entries.values():
                assert not entry.gone
                if entry.fence:
                    assert entry.fence <= self.fence
                    assert entry.fence not in fences, "one fence was given twice"
                    fences.add(entry.fence)
                    for name, _ in entry.ask.needs:
                        held[name] = held.get(name, 0) + 1
        assert held == {name: count for name, count in self._held.items() if count}, "slots are miscounted"
        if not self.ready:
            return
        waiting = {id(e) for s in self._shards.values() for e in s.entries.values() if not e.fence}
        lined = {id(e) for line in self._lines.values() for e in line if not e.gone and not e.fence}
        assert waiting == lined, "an ask stands in no line: it would wait for ever"
        for name in self._lines:
            first = self._first(name)
            if first is not None:
                assert self._held.get(name, 0) >= dict(first.ask.needs)[name], f"{name} is free, and somebody waits"

    # ---- inside ----

    def _welcome(self, number: int, life: int, hello: Hello, before: _Shard | None) -> _Shard:
        """A new life of a shard, or its first word to this arbiter: what it says replaces all that was known of it."""
        freed: dict[str, None] = {}
        for entry in before.entries.values() if before is not None else ():
            entry.gone = True
            for name, _ in entry.ask.needs:
                freed[name] = None
                if entry.fence:
                    self._held[name] -= 1
        known = self._shards[number] = _Shard(life=life)
        self.fence = max(self.fence, hello.fence)
        for ask, fence in hello.held:
            self.fence = max(self.fence, fence)
            known.entries[ask.ticket] = self._entry(number, ask, fence)
            for name, _ in ask.needs:
                self._held[name] = self._held.get(name, 0) + 1
        for ask in hello.asks:
            known.entries[ask.ticket] = entry = self._entry(number, ask)
            self._unplaced.append(entry)
        self._place()
        for name in freed:
            self._advance(name)
        return known

    def _entry(self, shard: int, ask: Ask, fence: int = 0) -> _Entry:
        self._order += 1
        return _Entry(shard, ask, self._order, fence)

    def _asked(self, shard: int, known: _Shard, ask: Ask) -> None:
        entry = known.entries[ask.ticket] = self._entry(shard, ask)
        if self.ready:
            self._consider(entry)
        else:
            self._unplaced.append(entry)

    def _done(self, known: _Shard, ticket: int) -> None:
        entry = known.entries.pop(ticket, None)
        if entry is None:
            return
        entry.gone = True
        for name, _ in entry.ask.needs:
            if entry.fence:
                self._held[name] -= 1
        for name, _ in entry.ask.needs:
            self._advance(name)

    def _place(self) -> None:
        """All shards have spoken: look at what waited for that, best rank first, and at every line."""
        if not self.ready:
            return
        unplaced, self._unplaced = sorted(entry for entry in self._unplaced if not entry.gone), []
        for entry in unplaced:
            self._consider(entry)
        for name in list(self._lines):
            self._advance(name)

    def _consider(self, entry: _Entry) -> None:
        """Grant it, or let it stand in line for the first of its needs that is full, or that others wait for before."""
        for name, limit in entry.ask.needs:
            first = self._first(name)
            if self._held.get(name, 0) >= limit or (first is not None and first < entry):
                heapq.heappush(self._lines.setdefault(name, []), entry)
                return
        self.fence += 1
        entry.fence = self.fence
        for name, _ in entry.ask.needs:
            self._held[name] = self._held.get(name, 0) + 1
        known = self._shards[entry.shard]
        known.granted += 1
        known.unseen.append(Grant(number=known.granted, ticket=entry.ask.ticket, fence=entry.fence))
        self.told.add(entry.shard)

    def _advance(self, name: str) -> None:
        """A slot of `name` may be free, or the first in its line is another one now."""
        if not self.ready:
            return
        while (first := self._first(name)) is not None:
            if self._held.get(name, 0) >= dict(first.ask.needs)[name]:
                return
            heapq.heappop(self._lines[name])
            self._consider(first)
        self._lines.pop(name, None)
        if not self._held.get(name, 0):
            self._held.pop(name, None)

    def _first(self, name: str) -> _Entry | None:
        line = self._lines.get(name)
        while line and (line[0].gone or line[0].fence):
            heapq.heappop(line)
        return line[0] if line else None
