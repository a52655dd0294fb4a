"""Deadlines, retry budgets, breaker view, adaptive choice, mirrors, vectors and counters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import (
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InvalidInput,
    ModelError,
    NotFound,
    Overloaded,
    Unavailable,
    UpstreamError,
)
from serve_apps.router.adaptive import AdaptivePolicy, Candidate, choose
from serve_apps.router.breaker import admitted, usable
from serve_apps.router.deadline import Deadline, parse_seconds, parse_timeout_microseconds
from serve_apps.router.mirror import MirrorPool, mirrors
from serve_apps.router.retry import RetryBudget, backoff_s, counts_against_version, may_fall_back, may_retry
from serve_apps.router.stats import RouterStats
from serve_apps.router.vectors import VectorCache
from serve_apps.stats import MAX_ANSWERS, MAX_SAMPLES, Answer
from serve_apps.table import VersionEntry


def entry(version: str, **fields: object) -> VersionEntry:
    return VersionEntry(version=version, app=f"m-{version}", signature=None, timeout_s=1.0, **fields)  # type: ignore[arg-type]


# -- deadlines


def test_deadlines_travel_between_processes() -> None:
    """A deadline keeps its moment in wall time and in this process's monotonic time."""
    deadline = Deadline.after(5.0, monotonic=100.0, now=1000.0)
    assert (deadline.at, deadline.wall) == (105.0, 1005.0)
    there = Deadline.until(deadline.wall, monotonic=7.0, now=1002.0)
    assert there.remaining(7.0) == 3.0
    assert there.remaining(11.0) == 0.0


@pytest.mark.parametrize(("text", "seconds"), [("1.5", 1.5), ("0", None), ("-1", None), ("60", 60.0)])
def test_timeout_header(text: str, seconds: float | None) -> None:
    """Seconds are read as a number; zero and less mean no limit."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "nan", "inf", "1s"])
def test_bad_timeout_header(text: str) -> None:
    """Anything else is a 400."""
    with pytest.raises(InvalidInput, match="x-request-timeout-seconds"):
        parse_seconds(text)


def test_protocol_timeout_is_in_microseconds() -> None:
    """The protocol's timeout parameter counts microseconds, as a number or as digits; 0 is no limit."""
    assert parse_timeout_microseconds(2_500_000) == 2.5
    assert parse_timeout_microseconds("1000") == 0.001
    assert parse_timeout_microseconds(0) is None
    for bad in (-1, True, "x", None, [1]):
        with pytest.raises(InvalidInput):
            parse_timeout_microseconds(bad)


# -- retries


@given(share=st.floats(0, 1), requests=st.integers(0, 500))
def test_retries_stay_within_the_budget(share: float, requests: int) -> None:
    """However many retries are wanted, at most share * requests plus the initial few happen."""
    budget = RetryBudget(share=share)
    taken = 0
    for _ in range(requests):
        budget.on_request()
        while budget.take():
            taken += 1
    assert taken <= share * requests + budget.floor


def test_no_budget_no_retry() -> None:
    """A share of zero means that nothing is ever tried again."""
    budget = RetryBudget(share=0.0)
    budget.on_request()
    assert not budget.take()


@pytest.mark.parametrize(
    ("error", "retry", "fall_back", "counts"),
    [
        (Unavailable("x"), True, True, True),
        (UpstreamError("x"), True, True, True),
        (ModelError("x"), False, True, True),
        (DeadlineExceeded("x"), False, True, True),
        (Overloaded("x"), False, True, False),
        (InvalidInput("x"), False, False, False),
        (NotFound("x"), False, False, False),
        (Cancelled("x"), False, False, False),
    ],
)
def test_what_each_failure_allows(error: HeadraceError, retry: bool, fall_back: bool, counts: bool) -> None:
    """Unreachable versions are asked again, broken ones replaced, full ones not pressed, and callers' mistakes
    returned."""
    assert (may_retry(error), may_fall_back(error), counts_against_version(error)) == (retry, fall_back, counts)


@given(attempt=st.integers(1, 50), roll=st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded(attempt: int, roll: float) -> None:
    """Pauses grow, with jitter, and never exceed the cap."""
    assert 0 <= backoff_s(attempt, roll=roll) <= 0.5


# -- the breaker's view


def test_ejected_versions_get_nothing_and_half_open_ones_a_few() -> None:
    """Closed versions are usable, ejected ones are not, half-open ones while a probe is free."""

    def ask(version: VersionEntry, probes: int) -> bool:
        return usable(version, admitted=frozenset(), probes_in_flight=lambda _: probes, probes_allowed=3)

    assert ask(entry("1"), 99)
    assert not ask(entry("1", ejected=True), 0)
    assert not ask(entry("1", ready=False), 0)
    assert ask(entry("1", half_open=True, ejected=True), 2)
    assert not ask(entry("1", half_open=True, ejected=True), 3)


@given(
    states=st.lists(st.tuples(st.booleans(), st.floats(0, 100)), min_size=1, max_size=6),
    percent=st.floats(0, 100),
)
def test_never_more_out_than_allowed(states: list[tuple[bool, float]], percent: float) -> None:
    """At most `max_ejection_percent` of the weighted versions are out, and only ejected ones are let in again."""
    entries = [entry(str(i), ejected=out) for i, (out, _) in enumerate(states)]
    weights = {str(i): weight for i, (_, weight) in enumerate(states)}
    back = admitted(entries, weights, percent)
    weighted = [e for e in entries if weights[e.version] > 0]
    out = [e for e in weighted if e.ejected and e.version not in back]
    assert len(out) <= len(weighted) * percent / 100
    assert all(e.ejected for e in entries if e.version in back)
    if back:
        assert len(out) == int(len(weighted) * percent / 100)


# -- adaptive


POLICY = AdaptivePolicy(candidates=("a", "b"), explore=0.1, min_samples=10)


def test_the_better_model_is_chosen() -> None:
    """Lower latency wins, errors cost more than they save, and cost counts when it has a weight."""
    fast = Candidate(model="a", latency_s=0.1, samples=100)
    slow = Candidate(model="b", latency_s=0.3, samples=100)
    assert choose(POLICY, [slow, fast], roll=0.5)[0] == "a"
    broken = Candidate(model="a", latency_s=0.1, error_rate=0.9, samples=100)
    assert choose(POLICY, [slow, broken], roll=0.5)[0] == "b"
    thrifty = AdaptivePolicy(candidates=("a", "b"), latency=0.1, cost=1.0)
    dear = Candidate(model="a", latency_s=0.1, cost=10.0, samples=100)
    cheap = Candidate(model="b", latency_s=0.3, cost=1.0, samples=100)
    assert choose(thrifty, [dear, cheap], roll=0.5)[0] == "b"


@given(rolls=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=200))
def test_exploring_is_bounded(rolls: list[float]) -> None:
    """Exactly the rolls below `explore` go to the least known candidate."""
    known = Candidate(model="a", latency_s=0.1, samples=100)
    unknown = Candidate(model="b", samples=3)
    for roll in rolls:
        assert choose(POLICY, [known, unknown], roll=roll)[0] == ("b" if roll < 0.1 else "a")


def test_nothing_known_asks_the_least_asked() -> None:
    """While nothing is known requests go round."""
    assert choose(POLICY, [Candidate(model="a", samples=4), Candidate(model="b", samples=3)], roll=0.9)[0] == "b"


# -- mirrors and vectors


def test_mirrors_get_their_share_and_never_the_answering_version() -> None:
    """A version gets a copy for its share of the rolls, except of requests that it answers anyway."""
    assert mirrors({"2": 50.0}, "1", 0.49) == ["2"]
    assert mirrors({"2": 50.0}, "1", 0.5) == []
    assert mirrors({"2": 100.0}, "2", 0.0) == []


async def test_mirrors_are_bounded() -> None:
    """Past the limit copies are dropped, not queued."""
    pool = MirrorPool(limit=2)
    gate = asyncio.Event()
    assert [pool.start(gate.wait()) for _ in range(3)] == [True, True, False]
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pool.start(gate.wait())
    await pool.close()


async def test_vectors_are_asked_for_once() -> None:
    """A known text is not embedded again; the oldest are forgotten."""
    asked: list[str] = []

    async def embed(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        asked.extend(texts)
        return {text: [float(len(text))] for text in texts}

    cache = VectorCache(embed, limit=2)
    assert await cache.get(["a", "bb", "a"]) == {"a": [1.0], "bb": [2.0]}
    await cache.get(["a"])
    await cache.get(["ccc"])
    assert asked == ["a", "bb", "ccc"]
    await cache.get(["bb"])
    assert asked[-1] == "bb"
    with pytest.raises(LookupError):
        await VectorCache(None).get(["x"])


async def test_vectors_pushed_out_meanwhile_are_answered_all_the_same() -> None:
    """A text that other calls push out of the cache while its neighbours are embedded still has its vector."""

    async def embed(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        if "slow" in texts:
            await cache.get(["b", "c"])
        return {text: [float(len(text))] for text in texts}

    cache = VectorCache(embed, limit=2)
    await cache.get(["a"])
    assert await cache.get(["a", "slow"]) == {"a": [1.0], "slow": [4.0]}


# -- counters


def stats() -> RouterStats:
    return RouterStats(roll=lambda: 0.999999)


def test_a_report_holds_what_happened_and_starts_anew() -> None:
    """Counts, trailing failures and latencies go into one report each, by version, revision and probe."""
    counters = stats()
    flow = counters.flow("m", "1.0.0")
    for outcome, failed in (("model_error", True), ("success", False), ("unavailable", True), ("invalid_input", False)):
        counters.finished(
            flow, revision=4, half_open=False, latency_s=0.02, rule="direct", outcome=outcome, failed=failed
        )
    counters.finished(flow, revision=5, half_open=True, latency_s=0.5, rule="r", outcome="success", failed=False)
    counters.arrived("m")
    counters.answered("req-1", "m", "1.0.0", "run-0-x", "team")
    report = counters.report(5)
    rows = {(row.revision, row.half_open): row for row in report.versions}
    assert (rows[4, False].requests, rows[4, False].errors, rows[4, False].trailing_failures) == (4, 2, 1)
    assert rows[4, False].latencies_ms == (20.0,)
    assert rows[5, True].latencies_ms == (500.0,)
    assert report.answers == (Answer(id="req-1", model="m", version="1.0.0", run="run-0-x", caller="team"),)
    assert report.arrivals == {"m": 1}
    after = counters.report(5)
    assert (after.seq, after.versions, after.answers) == (report.seq + 1, (), ())


def test_a_request_id_stays_with_the_caller_who_used_it_first() -> None:
    """Another caller's answer under the same id takes nothing over; the same caller's newer one does."""
    counters = stats()
    for caller, version in (("ours", "1"), ("theirs", "2"), ("ours", "3")):
        counters.answered("req", "m", version, None, caller)
    assert counters.report(1).answers == (Answer(id="req", model="m", version="3", caller="ours"),)


def test_reports_are_bounded() -> None:
    """However much happens between two reports, samples and answers stay within their limits, newest answers kept."""
    counters = stats()
    flow = counters.flow("m", "1")
    for i in range(3 * MAX_ANSWERS):
        counters.finished(
            flow, revision=1, half_open=False, latency_s=i / 1e6, rule="", outcome="success", failed=False
        )
        counters.answered(str(i), "m", "1", None, "team")
    report = counters.report(1)
    assert len(report.versions[0].latencies_ms) == MAX_SAMPLES
    assert len(report.answers) == MAX_ANSWERS
    assert report.answers[-1].id == str(3 * MAX_ANSWERS - 1)


def test_metric_rows_are_growth() -> None:
    """A second drain gives only what happened since the first."""
    counters = stats()
    flow = counters.flow("m", "1")
    for _ in range(3):
        counters.finished(flow, revision=1, half_open=False, latency_s=0.003, rule="r", outcome="success", failed=False)
    (row,) = counters.metric_rows()
    assert row.outcomes == {("r", "success"): 3}
    assert row.buckets[2] == 3
    assert counters.metric_rows() == []


def test_live_figures_follow_errors() -> None:
    """The smoothed error rate rises with failures and falls with successes."""
    counters = stats()
    flow = counters.flow("m", "1")

    def add(failed: bool, count: int) -> float:
        for _ in range(count):
            counters.finished(
                flow,
                revision=1,
                half_open=False,
                latency_s=0.1,
                rule="",
                outcome="x" if failed else "success",
                failed=failed,
            )
        return counters.candidate("m", 0.0).error_rate

    high = add(True, 50)
    assert high > 0.9
    assert add(False, 50) < 0.1
    assert counters.candidate("m", 2.0).cost == 2.0
    assert counters.candidate("unknown", 0.0).latency_s is None
