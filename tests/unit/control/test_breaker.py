"""The breaker's rules, one by one and under random histories."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.config.models import BreakerConfig
from serve_apps.control.breaker import (
    MAX_EJECTION_S,
    TRANSITIONS,
    Breaker,
    BreakerEvent,
    BreakerMove,
    BreakerSnapshot,
    BreakerState,
    Observation,
    may_eject,
)

CONFIG = BreakerConfig(consecutive_failures=5, min_requests=20, failure_rate=0.5, half_open_requests=3)


def seen(requests: int, errors: int, *, trailing: int | None = None, revision: int = 0) -> Observation:
    return Observation(
        requests=requests, errors=errors, trailing_failures=errors if trailing is None else trailing, revision=revision
    )


def take(breaker: Breaker, move: BreakerMove | None, revision: int) -> BreakerMove:
    """What the service does with a move: make it durable, under the table's next revision."""
    assert move is not None
    breaker.adopt(move.snapshot.model_copy(update={"since_revision": revision}))
    return move


def test_a_pair_that_the_table_does_not_have_raises() -> None:
    """Unknown transitions are an error, never ignored."""
    missing = set(itertools.product(BreakerState, BreakerEvent)) - TRANSITIONS.keys()
    assert len(missing) == 9
    with pytest.raises(KeyError):
        TRANSITIONS[BreakerState.CLOSED, BreakerEvent.PASSED]


def test_failures_in_a_row_open_it_across_reports() -> None:
    """Five consecutive failures open the breaker; one success between them starts the count again."""
    breaker = Breaker(CONFIG)
    assert breaker.observe(seen(3, 3), now=0) is None
    assert breaker.observe(seen(4, 3, trailing=3), now=1) is None
    move = take(breaker, breaker.observe(seen(2, 2), now=2), 1)
    assert move.snapshot.state is BreakerState.OPEN
    assert "5 failures in a row" in move.why


def test_the_rows_of_one_report_are_judged_together() -> None:
    """A streak that a success of the same report ended opens nothing, although its row alone would; one that goes on
    over the rows does, and rows of before the last move are left out.
    """
    breaker = Breaker(CONFIG)
    assert breaker.observe(seen(8, 8), seen(12, 1, trailing=0), now=0) is None
    assert breaker.streak == 0
    fresh = Breaker(CONFIG)
    move = take(fresh, fresh.observe(seen(3, 3), seen(2, 2, revision=1), now=0), 5)
    assert "5 failures in a row" in move.why
    take(fresh, fresh.tick(now=30), 6)
    assert fresh.observe(seen(9, 9, revision=5), seen(2, 0, revision=6), now=31) is None
    assert fresh.passed == 2


def test_a_clock_that_is_put_back_prolongs_nothing() -> None:
    """An ejection goes on to its probes, and failures of before the step do not stay in the window."""
    breaker = Breaker(CONFIG)
    take(breaker, breaker.observe(seen(5, 5), now=10_000), 5)
    assert breaker.tick(now=10_001) is None
    move = take(breaker, breaker.tick(now=500), 6)
    assert (breaker.snapshot.state, move.why) == ("half_open", "the clock was put back during the ejection")
    other = Breaker(CONFIG)
    assert other.observe(seen(10, 8, trailing=0), now=10_000) is None
    assert other.observe(seen(15, 3, trailing=0), now=500) is None
    assert len(other.window) == 1


def test_a_failure_rate_opens_it_within_its_interval() -> None:
    """Half of twenty requests within the interval open it; old ones are forgotten."""
    breaker = Breaker(CONFIG)
    assert breaker.observe(seen(10, 6, trailing=1), now=0) is None
    assert breaker.observe(seen(10, 6, trailing=1), now=11) is None
    assert breaker.observe(seen(10, 5, trailing=1), now=12) is not None


def test_a_late_success_does_not_close_it() -> None:
    """Results of requests sent before the opening count neither for nor against the half-open version."""
    breaker = Breaker(CONFIG)
    take(breaker, breaker.observe(seen(5, 5), now=0), revision=7)
    assert breaker.observe(seen(50, 0, revision=6), now=1) is None
    take(breaker, breaker.tick(now=30), revision=8)
    assert breaker.snapshot.state is BreakerState.HALF_OPEN
    assert breaker.observe(seen(50, 0, revision=7), now=31) is None
    assert breaker.observe(seen(5, 5, revision=6), now=31) is None
    assert breaker.observe(seen(2, 0, revision=8), now=32) is None
    move = take(breaker, breaker.observe(seen(1, 0, revision=8), now=33), revision=9)
    assert move.snapshot.state is BreakerState.CLOSED


def test_each_ejection_lasts_longer_and_health_shortens_the_next() -> None:
    """base x n, at most five minutes; healthy intervals take n back."""
    breaker = Breaker(CONFIG)
    now, lengths = 0.0, []
    for revision in range(1, 40, 2):
        trip = breaker.observe(seen(5, 5, revision=revision), now=now)
        if breaker.snapshot.state is BreakerState.HALF_OPEN:
            trip = breaker.observe(seen(1, 1, revision=revision), now=now)
        take(breaker, trip, revision)
        assert breaker.snapshot.open_until is not None
        lengths.append(breaker.snapshot.open_until - now)
        now = breaker.snapshot.open_until
        take(breaker, breaker.tick(now=now), revision + 1)
    assert lengths[:3] == [30, 60, 90]
    assert max(lengths) == MAX_EJECTION_S
    take(breaker, breaker.observe(seen(3, 0, revision=99), now=now), 100)
    trip = take(breaker, breaker.observe(seen(5, 5, revision=100), now=now + 1000), 101)
    assert trip.snapshot.ejections == 1


def test_max_ejection_percent_leaves_somebody() -> None:
    """With 50 %, one of two versions may be out and never both; with 100 % all may."""
    assert may_eject(ejected=0, total=2, max_percent=50)
    assert not may_eject(ejected=1, total=2, max_percent=50)
    assert may_eject(ejected=1, total=2, max_percent=100)
    assert not may_eject(ejected=0, total=1, max_percent=10)
    breaker = Breaker(CONFIG)
    assert breaker.observe(seen(9, 9), now=0, may_open=False) is None
    assert breaker.observe(seen(1, 1), now=1, may_open=True) is not None


def test_disabled_it_never_moves() -> None:
    """enabled: false counts nothing."""
    assert Breaker(BreakerConfig(enabled=False)).observe(seen(99, 99), now=0) is None


class BreakerMachine(RuleBasedStateMachine):
    """Random reports, late ones included, against the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(CONFIG)
        self.now = 0.0
        self.revision = 1
        self.probed = 0

    def move(self, move: BreakerMove | None) -> None:
        if move is None:
            return
        before = self.breaker.snapshot
        assert TRANSITIONS[before.state, move.event] is move.snapshot.state
        if move.event is BreakerEvent.TIMER:
            assert before.open_until is not None
            assert self.now >= before.open_until
        if move.event is BreakerEvent.PASSED:
            assert self.probed >= CONFIG.half_open_requests, "only answers to its own probes may close it"
        self.revision += 1
        self.probed = 0
        self.breaker.adopt(move.snapshot.model_copy(update={"since_revision": self.revision}))

    @rule(requests=st.integers(0, 30), data=st.data())
    def report(self, requests: int, data: st.DataObject) -> None:
        errors = data.draw(st.integers(0, requests))
        trailing = errors if errors == requests else data.draw(st.integers(0, errors))
        revision = data.draw(st.integers(max(0, self.revision - 3), self.revision))
        given = Observation(requests=requests, errors=errors, trailing_failures=trailing, revision=revision)
        current = revision >= self.breaker.snapshot.since_revision
        if current and errors == 0 and self.breaker.snapshot.state is BreakerState.HALF_OPEN:
            self.probed += requests
        move = self.breaker.observe(given, now=self.now)
        assert current or move is None, "old results move nothing"
        self.move(move)

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.move(self.breaker.tick(now=self.now))

    @rule()
    def restart(self) -> None:
        """A new owner knows the snapshot only."""
        text = self.breaker.snapshot.model_dump_json()
        self.breaker = Breaker(CONFIG, BreakerSnapshot.model_validate_json(text))
        self.probed = 0

    @invariant()
    def an_open_breaker_has_an_end(self) -> None:
        snapshot = self.breaker.snapshot
        assert (snapshot.state is BreakerState.OPEN) == (snapshot.open_until is not None)
        if snapshot.open_until is not None:
            assert snapshot.open_until <= snapshot.changed_at + MAX_EJECTION_S


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
