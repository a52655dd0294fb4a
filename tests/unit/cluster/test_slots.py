"""Slots across shards: the arbiter's rules, and what must hold whatever is lost, repeated, late or killed."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.slots import Arbiter, Ask, Grant, Holder, Reply, Report

LIMITS = {"lock:a": 1, "lock:b": 2, "queue:q": 2}


def ask(ticket: int, *names: str, rank: float = 0.0) -> Ask:
    return Ask(ticket=ticket, rank=rank, needs=tuple((name, LIMITS[name]) for name in names), about=f"ask {ticket}")


def talk(holder: Holder, arbiter: Arbiter, turns: int = 3) -> list[Grant]:
    """Exchange messages without any loss until nothing is pending."""
    got: list[Grant] = []
    for _ in range(turns):
        reply = arbiter.handle(holder.report())
        if reply is not None:
            got += holder.take(reply)
    arbiter.check()
    return got


def pair(*, shards: int = 2) -> tuple[Arbiter, list[Holder]]:
    """An arbiter that knows all its shards."""
    arbiter = Arbiter(epoch=1, shards=shards)
    holders = [Holder(shard=n, life=1) for n in range(shards)]
    for holder in holders:
        talk(holder, arbiter)
    return arbiter, holders


def test_one_at_a_time_over_two_shards() -> None:
    """The second asker waits for the first one's end, and its fence is higher."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    two.ask(ask(1, "lock:a"))
    (first,) = talk(one, arbiter)
    assert talk(two, arbiter) == []
    one.done(1)
    talk(one, arbiter)
    (second,) = talk(two, arbiter)
    assert second.fence > first.fence


def test_rank_decides_who_is_next_whatever_the_shard() -> None:
    """A smaller rank goes first; equal ones in the order in which they came."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    talk(one, arbiter)
    one.ask(ask(2, "lock:a", rank=5))
    talk(one, arbiter)
    two.ask(ask(1, "lock:a", rank=3))
    two.ask(ask(2, "lock:a", rank=5))
    talk(two, arbiter)
    order = []
    holding = {id(one): 1}
    for _ in range(3):
        for holder in (one, two):
            if id(holder) in holding:
                holder.done(holding.pop(id(holder)))
                talk(holder, arbiter)
        for name, holder in (("one", one), ("two", two)):
            for grant in talk(holder, arbiter):
                order.append((name, grant.ticket))
                holding[id(holder)] = grant.ticket
    assert order == [("two", 1), ("one", 2), ("two", 2)]


def test_who_waits_for_a_lock_holds_no_slot_of_its_queue() -> None:
    """Others of the queue go on meanwhile."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    talk(one, arbiter)
    two.ask(ask(1, "queue:q", "lock:a", rank=1))
    two.ask(ask(2, "queue:q", rank=2))
    two.ask(ask(3, "queue:q", rank=3))
    assert [grant.ticket for grant in talk(two, arbiter)] == [2, 3]
    one.done(1)
    talk(one, arbiter)
    assert talk(two, arbiter) == []
    two.done(2)
    assert [grant.ticket for grant in talk(two, arbiter)] == [1]


def test_a_new_arbiter_grants_nothing_before_all_shards_have_spoken() -> None:
    """What is held is known only to the shards; then it goes on under higher fences."""
    old, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    (held,) = talk(one, old)
    new = Arbiter(epoch=2, shards=2)
    two.ask(ask(1, "lock:a"))
    assert talk(two, new) == []
    assert new.missing == [0]
    talk(one, new)
    assert talk(two, new) == []
    one.done(1)
    talk(one, new)
    (grant,) = talk(two, new)
    assert grant.fence > held.fence


def test_what_a_dead_shard_held_is_free_when_it_is_back() -> None:
    """Its attempts died with it; what it asks for again comes first by its rank, under a higher fence."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a", rank=10))
    (before,) = talk(one, arbiter)
    two.ask(ask(1, "lock:a", rank=20))
    assert talk(two, arbiter) == []
    again = Holder(shard=0, life=2, fence=before.fence)
    again.ask(ask(1, "lock:a", rank=10))
    (grant,) = talk(again, arbiter)
    assert grant.fence > before.fence
    assert talk(two, arbiter) == []
    assert arbiter.handle(one.report()) is None, "the dead life's messages are refused"


def test_a_dead_shard_holds_what_it_held_until_it_is_back() -> None:
    """Nobody can know whether its work still runs."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    talk(one, arbiter)
    two.ask(ask(1, "lock:a"))
    assert talk(two, arbiter) == []
    talk(Holder(shard=0, life=2), arbiter)
    assert len(talk(two, arbiter)) == 1


def test_a_shard_that_is_added_is_waited_for() -> None:
    """Until it has said that it holds nothing, nobody gets anything new."""
    arbiter, (one, _) = pair()
    arbiter.resize(3)
    one.ask(ask(1, "lock:a"))
    assert talk(one, arbiter) == []
    talk(Holder(shard=2, life=1), arbiter)
    assert len(talk(one, arbiter)) == 1


def test_an_ask_that_is_taken_back_stands_in_nobodys_way() -> None:
    """Also when its grant is on its way already."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    report = one.report()
    reply = arbiter.handle(report)
    one.done(1)
    assert reply is not None
    assert one.take(reply) == []
    two.ask(ask(1, "lock:a"))
    talk(one, arbiter)
    assert len(talk(two, arbiter)) == 1


def test_the_view_says_who_holds_and_who_waits() -> None:
    """For people who ask why a step does not start."""
    arbiter, (one, two) = pair()
    one.ask(ask(1, "lock:a"))
    two.ask(ask(2, "lock:a"))
    talk(one, arbiter)
    talk(two, arbiter)
    row = {"name": "lock:a", "limit": 1, "held": [{"by": "ask 1", "fence": 1}], "waiting": ["ask 2"]}
    assert arbiter.view() == [row]


class Shards(RuleBasedStateMachine):
    """Three shards, arbiters that die or freeze and wake up, and a network that loses, repeats and reorders.

    `working` is what really runs: tickets that the living holders hold. Deaths end it, as they end a process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lives = [1, 1, 1]
        self.holders = [Holder(shard=n, life=1) for n in range(3)]
        self.arbiters = [Arbiter(epoch=1, shards=3)]
        self.reports: list[Report] = []
        self.replies: list[tuple[int, Reply]] = []
        self.epoch = 1
        self.used: dict[str, int] = {}
        self.best_used = [0, 0, 0]
        self.tickets = 0

    @property
    def now(self) -> Arbiter:
        return self.arbiters[-1]

    @rule(
        shard=st.integers(0, 2),
        names=st.sets(st.sampled_from(sorted(LIMITS)), min_size=1, max_size=2),
        rank=st.integers(0, 5),
    )
    def asks(self, shard: int, names: set[str], rank: int) -> None:
        self.tickets += 1
        self.holders[shard].ask(ask(self.tickets, *sorted(names), rank=rank))

    @rule(shard=st.integers(0, 2), pick=st.randoms(use_true_random=False))
    def ends(self, shard: int, pick: random.Random) -> None:
        holder = self.holders[shard]
        tickets = sorted([*holder.held, *holder.asked])
        if tickets:
            holder.done(pick.choice(tickets))

    @rule(shard=st.integers(0, 2))
    def sends(self, shard: int) -> None:
        self.reports.append(self.holders[shard].report())

    @precondition(lambda self: self.reports)
    @rule(pick=st.randoms(use_true_random=False), keep=st.booleans(), late=st.booleans())
    def arrives(self, pick: random.Random, keep: bool, late: bool) -> None:
        report = pick.choice(self.reports)
        if not keep:
            self.reports.remove(report)
        arbiter = pick.choice(self.arbiters) if late else self.now
        self.deliver(report, arbiter)

    def deliver(self, report: Report, arbiter: Arbiter) -> None:
        if arbiter.greets(report) and arbiter is not self.now:
            self.arbiters.remove(arbiter)  # it looks whether it still owns its log, and ends
            return
        reply = arbiter.handle(report)
        if reply is not None:
            self.replies.append((report.shard, reply))

    @precondition(lambda self: self.replies)
    @rule(pick=st.randoms(use_true_random=False), keep=st.booleans())
    def answers(self, pick: random.Random, keep: bool) -> None:
        entry = pick.choice(self.replies)
        if not keep:
            self.replies.remove(entry)
        self.taken(*entry)

    def taken(self, shard: int, reply: Reply) -> None:
        holder = self.holders[shard]
        for grant in holder.take(reply):
            held, fence = holder.held[grant.ticket]
            self.best_used[shard] = max(self.best_used[shard], fence)
            for name, limit in held.needs:
                if limit == 1:
                    assert fence > self.used.get(name, 0), f"{name}: a later holder has a smaller fence"
                self.used[name] = max(self.used.get(name, 0), fence)

    @rule(shard=st.integers(0, 2))
    def shard_dies(self, shard: int) -> None:
        self.lives[shard] += 1
        self.holders[shard] = Holder(shard=shard, life=self.lives[shard], fence=self.best_used[shard])

    @rule(zombie=st.booleans())
    def arbiter_dies(self, zombie: bool) -> None:
        if not zombie:
            self.arbiters.pop()
        self.epoch += 1
        self.arbiters.append(Arbiter(epoch=self.epoch, shards=3))

    @precondition(lambda self: self.replies or self.reports)
    @rule()
    def network_dies(self) -> None:
        self.replies.clear()
        self.reports.clear()

    @invariant()
    def no_more_than_the_limit_ever_runs(self) -> None:
        for name, limit in LIMITS.items():
            running = [
                (holder.shard, ticket)
                for holder in self.holders
                for ticket, (held, _) in holder.held.items()
                if name in dict(held.needs)
            ]
            assert len(running) <= limit, f"{name}: {running} run at the same time"

    @invariant()
    def the_arbiters_memory_is_sound(self) -> None:
        self.now.check()

    def teardown(self) -> None:
        """When the network is well again everything that waits gets its turn, and nothing stays held."""
        for _ in range(self.tickets * 2 + 5):
            for _ in range(4):
                for holder in self.holders:
                    self.deliver(holder.report(), self.now)
                    while self.replies:
                        self.taken(*self.replies.pop())
                self.no_more_than_the_limit_ever_runs()
            for holder in self.holders:
                for ticket in list(holder.held):
                    holder.done(ticket)
        assert not any(holder.asked or holder.held for holder in self.holders), "somebody waits for ever"
        self.now.check()
        assert self.now.view() == [], "something is held by nobody"


TestShards = Shards.TestCase
TestShards.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
