"""The batch planner's rules, as examples and as properties over random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.errors import DeadlineExceeded, Overloaded
from serve_apps.batching.planner import BatchPolicy, Planner, Ticket


def numbers(planner: Planner, now: float) -> list[int]:
    batch = planner.next_batch(now)
    return [] if batch is None else [t.number for t in batch.tickets]


def test_a_full_batch_starts_at_once() -> None:
    """A batch that is full does not wait for the queue delay."""
    planner = Planner(BatchPolicy(max_batch_size=2, max_queue_delay_s=10))
    planner.admit(0.0)
    assert planner.next_batch(0.0) is None
    assert planner.wake_at(0.0) == 10.0
    planner.admit(0.0)
    assert planner.wake_at(0.0) == 0.0
    assert numbers(planner, 0.0) == [1, 2]


def test_a_lone_item_waits_only_for_the_queue_delay() -> None:
    """An item that finds no company starts when its delay is over."""
    planner = Planner(BatchPolicy(max_batch_size=8, max_queue_delay_s=0.002))
    planner.admit(5.0)
    assert numbers(planner, 5.001) == []
    assert numbers(planner, 5.002) == [1]


def test_urgent_items_go_first_and_old_ones_catch_up() -> None:
    """A lower level overtakes, but an item that has waited a level's ageing time is overtaken no more."""
    policy = BatchPolicy(max_batch_size=1, max_queue_delay_s=0, priority_levels=3, ageing_s=2.0)
    planner = Planner(policy)
    planner.admit(0.0, priority=2)
    planner.admit(0.5, priority=0)
    planner.admit(4.5, priority=0)
    order = []
    for _ in range(3):
        order += numbers(planner, 5.0)
        planner.finished(5.0, 1, 0.1)
    assert order == [2, 1, 3]


def test_priorities_out_of_range_are_clamped_and_none_is_the_middle() -> None:
    """Whatever integer a caller sends names a level."""
    policy = BatchPolicy(priority_levels=3)
    assert [policy.level(p) for p in (None, -5, 0, 1, 2, 99)] == [1, 0, 0, 1, 2, 2]


def test_sizes_of_different_buckets_do_not_share_a_batch() -> None:
    """A short text is not padded to the length of a long one."""
    planner = Planner(BatchPolicy(max_batch_size=4, max_queue_delay_s=0, min_bucket=32))
    for size in (5, 500, 32, 480):
        planner.admit(0.0, size=size)
    assert numbers(planner, 0.0) == [1, 3]
    planner.finished(0.0, 2, 0.1)
    assert numbers(planner, 0.0) == [2, 4]


def test_a_full_queue_says_when_to_come_back() -> None:
    """Retry-After grows with what waits and with how long batches take."""
    planner = Planner(BatchPolicy(max_batch_size=1, queue=3, max_queue_delay_s=0))
    planner.admit(0.0)
    assert planner.next_batch(0.0) is not None
    planner.finished(0.0, 1, 2.0)
    for _ in range(3):
        planner.admit(0.0)
    with pytest.raises(Overloaded) as caught:
        planner.admit(0.0)
    assert caught.value.retry_after_s == pytest.approx(6.0)


def test_work_that_cannot_finish_in_time_is_refused_before_it_waits() -> None:
    """A deadline shorter than the queue ahead is Overloaded, one shorter than any batch is DeadlineExceeded."""
    planner = Planner(BatchPolicy(max_batch_size=1, max_queue_delay_s=0))
    planner.admit(0.0)
    planner.next_batch(0.0)
    planner.finished(1.0, 1, 1.0)
    for _ in range(5):
        planner.admit(1.0)
    with pytest.raises(Overloaded) as caught:
        planner.admit(1.0, deadline_s=4.0)
    assert caught.value.retry_after_s == pytest.approx(3.0)
    with pytest.raises(DeadlineExceeded):
        planner.admit(1.0, deadline_s=1.5)
    with pytest.raises(DeadlineExceeded):
        planner.admit(1.0, deadline_s=0.9)
    planner.admit(1.0, priority=0, deadline_s=4.0)
    assert planner.waiting == 6


def test_a_slow_start_does_not_refuse_work_for_ever() -> None:
    """Service times older than a minute are forgotten, so one slow batch cannot lock out every deadline."""
    planner = Planner(BatchPolicy(max_batch_size=1, max_queue_delay_s=0))
    planner.admit(0.0)
    planner.next_batch(0.0)
    planner.finished(10.0, 1, 10.0)
    with pytest.raises(DeadlineExceeded):
        planner.admit(11.0, deadline_s=16.0)
    planner.admit(80.0, deadline_s=85.0)


def test_an_expired_item_is_handed_back_and_not_run() -> None:
    """An item whose deadline passes in the queue is named as expired, also while the model is busy."""
    planner = Planner(BatchPolicy(max_batch_size=1, max_queue_delay_s=0))
    planner.admit(0.0)
    assert numbers(planner, 0.0) == [1]
    planner.admit(0.0, deadline_s=1.0)
    assert planner.wake_at(0.0) == 1.0
    batch = planner.next_batch(1.0)
    assert batch is not None
    assert batch.tickets == ()
    assert [t.number for t in batch.expired] == [2]


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    """Zero or negative limits are errors, not surprises."""
    with pytest.raises(ValueError, match="max_batch_size"):
        BatchPolicy(max_batch_size=0)
    with pytest.raises(ValueError, match="ageing_s"):
        BatchPolicy(ageing_s=-1)


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 2), st.integers(1, 200)), min_size=1, max_size=60),
    size=st.integers(1, 8),
    service=st.floats(0.01, 0.3),
)
@settings(max_examples=60, deadline=None)
def test_nothing_starves(arrivals: list[tuple[float, int, int]], size: int, service: float) -> None:
    """No item is run after one that arrived later than it by more than its level's ageing time (in one bucket)."""
    policy = BatchPolicy(max_batch_size=size, max_queue_delay_s=0.01, ageing_s=0.2)
    planner = Planner(policy)
    pending = []
    now = 0.0
    for gap, level, item_size in arrivals:
        now += gap
        pending.append((now, level, item_size))
    now, busy_until = 0.0, 0.0
    started: list[tuple[int, Ticket]] = []
    running = 0
    batches = 0
    while len(started) < len(arrivals):
        if running and now >= busy_until:
            planner.finished(now, running, service)
            running = 0
        while pending and pending[0][0] <= now:
            _, level, item_size = pending.pop(0)
            planner.admit(now, priority=level, size=item_size)
        batch = planner.next_batch(now)
        if batch is not None:
            batches += 1
            started += [(batches, t) for t in batch.tickets]
            running, busy_until = len(batch.tickets), now + service
        times = [busy_until] if running else []
        times += [pending[0][0]] if pending else []
        wake = planner.wake_at(now)
        times += [wake] if wake is not None else []
        assert times or len(started) == len(arrivals), "items wait and nothing will ever wake the planner"
        now = min(times, default=now)
    for run, ticket in started:
        for other_run, other in started:
            if other.bucket == ticket.bucket and other_run < run:
                assert other.arrival_s <= ticket.arrival_s + ticket.level * policy.ageing_s


@given(
    left=st.floats(0.01, 5),
    ahead=st.integers(0, 30),
    size=st.integers(1, 8),
    times=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=10),
)
def test_only_hopeless_work_is_refused(left: float, ahead: int, size: int, times: list[float]) -> None:
    """What is refused could not have finished even if every batch were full and as fast as the fastest seen."""
    planner = Planner(BatchPolicy(max_batch_size=size, max_queue_delay_s=0, queue=1000))
    for seconds in times:
        for _ in range(size):
            planner.admit(0.0)
        planner.next_batch(0.0)
        planner.finished(0.0, size, seconds)
    for _ in range(ahead):
        planner.admit(0.0)
    best_case = (ahead // size + 1) * min(times)
    try:
        planner.admit(0.0, deadline_s=left)
    except (Overloaded, DeadlineExceeded):
        assert left < ahead / size * min(times) + min(times) + 1e-9
    else:
        assert left >= min(times)
    if left >= best_case + min(times):
        assert planner.waiting == ahead + 1


class PlannerMachine(RuleBasedStateMachine):
    """Random admits, cancels, batches and completions: every item ends in exactly one way."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = BatchPolicy(max_batch_size=3, max_queue_delay_s=0.05, queue=12, parallelism=2, ageing_s=0.3)
        self.planner = Planner(self.policy)
        self.now = 0.0
        self.live: dict[int, Ticket] = {}
        self.ended: set[int] = set()
        self.running: list[tuple[float, tuple[Ticket, ...]]] = []

    @rule(step=st.floats(0, 0.5))
    def time_passes(self, step: float) -> None:
        self.now += step

    @rule(
        priority=st.one_of(st.none(), st.integers(-1, 4)),
        size=st.integers(1, 300),
        budget=st.one_of(st.none(), st.floats(-0.1, 3)),
    )
    def admit(self, priority: int | None, size: int, budget: float | None) -> None:
        deadline = None if budget is None else self.now + budget
        try:
            ticket = self.planner.admit(self.now, priority=priority, size=size, deadline_s=deadline)
        except Overloaded as error:
            assert (error.retry_after_s or 0) > 0, "a refusal says when to come back"  # noqa: PT017 (it may also not raise)
            assert deadline is not None or len(self.live) == self.policy.queue
        except DeadlineExceeded:
            assert deadline is not None
        else:
            assert ticket.number not in self.live
            self.live[ticket.number] = ticket

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.live.values())))
        assert self.planner.cancel(ticket)
        assert not self.planner.cancel(ticket)
        del self.live[ticket.number]
        self.ended.add(ticket.number)

    @rule()
    def next_batch(self) -> None:
        free = len(self.running) < self.policy.parallelism
        batch = self.planner.next_batch(self.now)
        if batch is None:
            wake = self.planner.wake_at(self.now)
            assert wake is None or wake > self.now
            return
        assert free or not batch.tickets
        assert len(batch.tickets) <= self.policy.max_batch_size
        assert len({t.bucket for t in batch.tickets}) <= 1
        assert [t.urgency for t in batch.tickets] == sorted(t.urgency for t in batch.tickets)
        for ticket in (*batch.tickets, *batch.expired):
            assert self.live.pop(ticket.number) == ticket
            assert ticket.number not in self.ended
            self.ended.add(ticket.number)
        assert all(t.deadline_s is None or t.deadline_s > self.now for t in batch.tickets)
        if batch.tickets:
            self.running.append((self.now, batch.tickets))

    @precondition(lambda self: self.running)
    @rule(observe=st.booleans())
    def finish(self, observe: bool) -> None:
        started, tickets = self.running.pop(0)
        self.planner.finished(self.now, len(tickets), self.now - started, observe=observe)

    @invariant()
    def consistent(self) -> None:
        self.planner.validate()
        assert self.planner.waiting == len(self.live)
        assert self.planner.running == len(self.running)


TestPlannerMachine = PlannerMachine.TestCase
TestPlannerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
