"""The release decision: what each kind of figures leads to, and how often it is wrong (a small seeded simulation)."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config.models import AnalysisConfig, ReleaseConfig
from serve_apps.control.decide import Looks, Progress, Seen, decide
from serve_apps.control.intervals import Pair, difference, wilson, z_of
from serve_apps.control.release import ReleasePlan, plan_release
from serve_apps.control.samples import Counts, bucket_of, bucket_value
from serve_apps.control.simulation import Traffic, Truth, _buckets, simulate

PLAN = plan_release(ReleaseConfig())


def counts(requests: int, errors: int = 0, latency_ms: float = 10.0) -> Counts:
    latency = {bucket_of(latency_ms): requests - errors} if requests > errors else {}
    return Counts(requests=requests, errors=errors, latency=latency)


def at(step: int = 0, *, plan: ReleasePlan = PLAN, looks: Looks | None = None) -> Progress:
    return Progress(plan=plan, step=step, step_started_at=0.0, looks=looks or Looks())


def test_wilson_matches_the_published_example() -> None:
    """Newcombe's table: 81 of 263 at 95 % gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    z = z_of(0.025)
    assert wilson(81 / 263, 263, z) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20, z) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_newcombe_matches_the_published_example() -> None:
    """Newcombe 1998, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339; 10/10 against 0/10 gives 0.6075 to 1."""
    z = z_of(0.025)
    found = difference([Pair(56, 70, 48, 80)], z_low=z, z_high=z)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    extreme = difference([Pair(10, 10, 0, 10)], z_low=z, z_high=z)
    assert extreme is not None
    assert (extreme.low, extreme.high) == pytest.approx((0.6075, 1.0), abs=1e-4)


def test_strata_are_compared_within_themselves() -> None:
    """Simpson's paradox: equal versions within each step are equal, although the pooled rates differ."""
    strata = [Pair(1, 100, 19, 1900), Pair(100, 1000, 100, 1000)]
    found = difference(strata, z_low=2, z_high=2)
    assert found is not None
    assert found.estimate == pytest.approx(0, abs=1e-12)
    assert found.low < 0 < found.high


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=50))
def test_a_quantile_of_the_sketch_is_within_two_percent(values: list[float]) -> None:
    """The sketch's 95th percentile is a real sample's within the width of a bucket, at any scale."""
    found = Counts()
    found.add_latencies(values)
    exact = sorted(values)[math.ceil(0.95 * len(values)) - 1]
    bucket = found.quantile_bucket(0.95)
    assert bucket is not None
    assert bucket_value(bucket) == pytest.approx(exact, rel=0.021)
    assert _buckets(np.array(values)).tolist() == [bucket_of(value) for value in values]


def test_little_data_holds() -> None:
    """Below min_samples nothing is decided, however good it looks."""
    found = decide(at(), Seen(strata=[counts(500)]), Seen(strata=[counts(49)]), 10_000)
    assert (found.action, found.reason) == ("hold", "insufficient_data")
    assert "49 of 50" in found.why


def test_a_step_lasts_its_time() -> None:
    """Enough good samples do not shorten a step."""
    found = decide(at(), Seen(strata=[counts(5000)]), Seen(strata=[counts(500)]), 299)
    assert (found.action, found.reason) == ("hold", "step_time")
    assert decide(at(), Seen(strata=[counts(5000)]), Seen(strata=[counts(500)]), 300).action == "advance"


def test_the_last_step_before_everything_wants_proof() -> None:
    """60 clean answers allow the next small step, not the step to all traffic; 2,000 do."""
    few = decide(at(2), Seen(strata=[counts(60)] * 3), Seen(strata=[counts(20)] * 2 + [counts(60)]), 301)
    assert (few.action, few.reason) == ("hold", "inconclusive")
    assert few.looks is not None
    assert few.looks.passes == 1
    again = decide(
        at(2, looks=few.looks), Seen(strata=[counts(60)] * 3), Seen(strata=[counts(20)] * 2 + [counts(61)]), 302
    )
    assert again.looks is None, "the next test comes with half as many samples more"
    many = decide(at(2), Seen(strata=[counts(2000)] * 3), Seen(strata=[counts(700)] * 3), 301)
    assert (many.action, many.reason) == ("advance", "not_worse")
    assert many.looks is not None
    last = decide(
        at(3, looks=many.looks),
        Seen(strata=[counts(2000)] * 3 + [counts(0)]),
        Seen(strata=[counts(700)] * 4),
        301,
    )
    assert last.action == "promote"


def test_looks_are_few_and_spend_less_and_less() -> None:
    """Between two looks nothing is tested; a verdict stays what it was."""
    looks = Looks()
    tested = 0
    for n in range(1, 5000):
        found = decide(at(looks=looks), Seen(strata=[counts(n * 19)]), Seen(strata=[counts(n)]), 1)
        if found.looks is not None:
            tested += 1
            looks = found.looks
    assert tested == looks.regression == 1 + math.floor(math.log(4999 / 50) / math.log(1.5))


def test_looks_that_could_not_promote_are_not_counted() -> None:
    """While one version has no figures beside the other's, no time that passes makes a later promotion any harder."""
    plan = plan_release(ReleaseConfig(steps=(99,), step_duration=0, analysis=AnalysisConfig(feedback=0.1)))
    looks = Looks()
    for stable in (counts(0), counts(1), counts(5000)):
        for _ in range(100):
            found = decide(at(plan=plan, looks=looks), Seen(strata=[stable]), Seen(strata=[counts(5000)]), 1e6)
            assert (found.action, found.reason) == ("hold", "insufficient_data")
            looks = found.looks or looks
    assert looks.passes == 0
    liked = {"feedback_n": 5000, "feedback_sum": 4500.0}
    both = counts(5000).model_copy(update=liked)
    found = decide(at(plan=plan, looks=looks), Seen(strata=[both]), Seen(strata=[both]), 1e6)
    assert found.action == "promote"


def test_constant_latencies_do_not_block() -> None:
    """Versions that always take the same time are comparable too."""
    same = decide(at(2), Seen(strata=[counts(2000)] * 3), Seen(strata=[counts(700)] * 3), 301)
    assert same.action == "advance"
    slower = decide(at(), Seen(strata=[counts(2000)]), Seen(strata=[counts(100, latency_ms=13.0)]), 301)
    assert (slower.action, slower.reason) == ("roll_back", "regression")


def test_missing_feedback_holds_when_it_is_asked_for() -> None:
    """With a feedback margin, a candidate without scores is not promoted."""
    plan = plan_release(ReleaseConfig(strategy="ab", analysis=AnalysisConfig(feedback=0.05)))
    found = decide(at(plan=plan), Seen(strata=[counts(5000)]), Seen(strata=[counts(5000)]), 301)
    assert (found.action, found.reason) == ("hold", "insufficient_data")
    assert "feedback" in found.why


@settings(max_examples=200)
@given(
    st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.floats(0, 1000),
    st.integers(0, 3),
)  # fmt: skip
def test_any_figures_give_a_decision(n_s: int, e_s: int, n_c: int, e_c: int, now: float, step: int) -> None:
    """Whatever comes in, there is one decision, with a reason; the same figures give the same one."""
    stable = Seen(strata=[Counts()] * step + [counts(n_s, min(e_s, n_s))], recent=counts(n_s, min(e_s, n_s)))
    candidate = Seen(strata=[Counts()] * step + [counts(n_c, min(e_c, n_c))], recent=counts(n_c, min(e_c, n_c)))
    found = decide(at(step), stable, candidate, now)
    assert found.why
    assert found == decide(at(step), stable, candidate, now)
    if n_c < 50:
        assert found.action in ("hold", "roll_back")


CASES = {
    "good": (Truth(), Truth(), Traffic(), "promoted"),
    "good with more errors": (Truth(error_rate=0.03), Truth(error_rate=0.03), Traffic(), "promoted"),
    "the world gets worse": (Truth(), Truth(), Traffic(error_drift=0.1, latency_drift=0.5), "promoted"),
    "errors": (Truth(), Truth(error_rate=0.055), Traffic(), "rolled_back"),
    "latency": (Truth(), Truth(median_ms=75), Traffic(), "rolled_back"),
}


@pytest.mark.parametrize("name", CASES)
def test_simulated_releases_end_as_they_should(name: str) -> None:
    """At the default settings at most 5 % of 40 releases end wrongly (benchmarks/releases.py runs thousands)."""
    stable, candidate, traffic, wanted = CASES[name]
    ends = Counter(
        simulate(
            PLAN, stable, candidate, traffic, random=np.random.default_rng([11, seed]), limit_s=7200, tick_s=20
        ).end
        for seed in range(40)
    )
    wrong = ends["rolled_back" if wanted == "promoted" else "promoted"]
    assert wrong <= 2, ends
    assert ends[wanted] >= 36, ends


def test_a_candidate_at_the_edge_of_the_margin_is_rarely_promoted() -> None:
    """The promise behind promotion: a true difference equal to the margin passes in at most 5 % of releases."""
    ends = Counter(
        simulate(
            PLAN,
            Truth(error_rate=0.01),
            Truth(error_rate=0.02),
            Traffic(),
            random=np.random.default_rng([13, seed]),
            limit_s=3600,
            tick_s=30,
        ).end
        for seed in range(40)
    )
    assert ends["promoted"] <= 5, ends  # 5 % of 40 is 2, and what chance adds to it
