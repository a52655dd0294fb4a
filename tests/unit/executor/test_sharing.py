"""When short steps share a task, and how many of them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.executor.sharing import Durations, SharingRules, group

RULES = SharingRules()
EXPECTED = st.lists(st.floats(min_value=0, max_value=RULES.short_s), max_size=80)
COUNTS = st.integers(min_value=0, max_value=40)


@given(expected=EXPECTED, out=COUNTS, slots=COUNTS, idle=st.integers(min_value=-20, max_value=40))
def test_groups_keep_within_their_bounds(expected: list[float], out: int, slots: int, idle: int) -> None:
    """No task takes too many steps or too much work, nobody is sent twice, and no more tasks are out than are used."""
    sizes = group(expected, out=out, slots=slots, idle=idle, rules=RULES)
    assert all(1 <= size <= RULES.max_items for size in sizes)
    assert sum(sizes) <= len(expected)
    assert out + len(sizes) <= max(out, 2 * max(slots, 1))
    at = 0
    for size in sizes:
        work = expected[at : at + size]
        assert size == 1 or sum(work) <= RULES.task_s * 1.000001
        at += size


@given(expected=EXPECTED.filter(bool), slots=COUNTS, idle=COUNTS, out=COUNTS)
def test_what_waits_has_a_reason(expected: list[float], slots: int, idle: int, out: int) -> None:
    """A step waits only for a place, or for company while enough tasks are on their way."""
    sizes = group(expected, out=out, slots=slots, idle=idle, rules=RULES)
    if sum(sizes) < len(expected):
        assert out + len(sizes) >= min(2 * max(slots, 1), RULES.eager)
    if out == 0:
        assert sizes


@given(count=st.integers(min_value=1, max_value=16), idle=st.integers(min_value=1, max_value=40))
@example(count=16, idle=16)
def test_work_that_is_worth_it_is_spread_over_idle_places(count: int, idle: int) -> None:
    """Steps that are each worth a task of their own share none while places are idle."""
    rules = SharingRules(worth_s=0.004)
    sizes = group([0.0045] * count, out=0, slots=idle, idle=idle, rules=rules)
    assert len(sizes) >= min(count, idle)


def test_tiny_steps_go_in_few_tasks() -> None:
    """Thirty-two no-ops make two tasks, however many places are idle, and the next wait until one answers."""
    assert group([0.0001] * 32, out=0, slots=8, idle=8, rules=RULES) == [16, 16]
    assert group([0.0001] * 5, out=2, slots=8, idle=6, rules=RULES) == []
    assert group([0.0001] * 5, out=1, slots=8, idle=7, rules=RULES) == [5]


def test_a_kind_is_known_only_after_it_was_seen() -> None:
    """A step shares no task before enough of its like have been timed."""
    durations = Durations(min_seen=3)
    for _ in range(2):
        durations.observe("noop", 0.001)
    assert durations.mean("noop") is None
    durations.observe("noop", 0.001)
    assert durations.mean("noop") == 0.001
    assert durations.mean("other") is None


@given(seconds=st.floats(min_value=1, max_value=3600))
def test_one_long_attempt_makes_a_kind_long_until_many_short_ones(seconds: float) -> None:
    """After one that hung, steps of its kind go alone for a while, and share again in the end."""
    durations = Durations()
    for _ in range(8):
        durations.observe("step", 0.001)
    durations.observe("step", seconds)
    for _ in range(10):
        durations.observe("step", 0.001)
        mean = durations.mean("step")
        assert mean is not None
        assert mean > RULES.short_s
    for _ in range(80):
        durations.observe("step", 0.001)
    mean = durations.mean("step")
    assert mean is not None
    assert mean < RULES.short_s


def test_what_is_remembered_is_bounded() -> None:
    """Kinds without end (a new folder each minute) do not fill the memory."""
    durations = Durations(min_seen=1)
    for number in range(10_000):
        durations.observe(number, 0.001)
    assert sum(durations.mean(number) is not None for number in range(10_000)) <= 4096
