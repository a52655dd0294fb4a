"""What a release does next, by the figures: advance, hold, promote or roll back. Pure.

The candidate is compared with the *concurrent* stable, step by step (strata), on three metrics:

- error rate: difference of proportions; worse when it exceeds `analysis.error_rate`;
- latency: the share of the candidate's answers slower than `latency_p95` times the stable's 95th percentile; worse
  when it exceeds 5 % (then the candidate's 95th percentile is above that limit);
- feedback: difference of mean scores; worse when it sank by more than `analysis.feedback`.

Repeated looks. Testing after every request would sooner or later call a good candidate bad. So looks are taken only
when the candidate's sample has grown by half (50, 75, 113, …), and look k spends alpha / (k (k + 1)) of the error
probability alpha = 1 - confidence; the sum over all k is alpha (an alpha-spending union bound; see Jennison and
Turnbull, "Group Sequential Methods", 2000, chapter 7, for spending in general). Rolling back on any of m metrics spends
alpha / m on each (Bonferroni); promoting needs all of them (an intersection-union test, which needs no correction).
Looks for promotion are counted apart, from the first one that could promote.

- Roll back: some metric's lower bound is beyond its margin.
- Promote, or move to 100 %: every metric's upper bound is within its margin ("not worse", not just "not proven worse").
- Advance before that: the step's time is over, it has `min_samples`, nothing is proven worse and no estimate is
  beyond its margin.
- Hold otherwise, saying whether data are missing (`insufficient_data`) or the answer is still open (`inconclusive`).

Guard rails look at recent figures alone, need no minimum of samples, and act at once; when the stable version breaks
the same limit at the same time, the cause is not the candidate, and the release holds (`shared_failure`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serve_apps.control.intervals import Pair, difference, wilson, z_of
from serve_apps.control.release import ReleasePlan
from serve_apps.control.samples import Counts, bucket_of, buckets_of_ratio

__all__ = ["GUARDS", "Decision", "Looks", "Progress", "Seen", "decide"]

GROWTH = 1.5
_GUARD_Z = z_of(0.001)
_P = 0.95
GUARDS = ("error_rate", "latency_p95_ms", "feedback")
"""Guard rails: the candidate's own error rate, its 95th percentile in ms, and the least mean of its feedback."""


class Looks(BaseModel):
    """How often the figures were tested, and what the last test said (`metrics`)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    regression: int = 0
    passes: int = 0
    passed_at: int = 0
    """The candidate's samples at the last test for promotion."""
    passed: bool = False
    metrics: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a release stands. Times in seconds; `step_started_at` is already moved by the time spent paused."""

    plan: ReleasePlan
    step: int
    step_started_at: float
    looks: Looks = field(default_factory=Looks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One version's figures: per step so far (the last one is the current step), and of the last seconds."""

    strata: Sequence[Counts]
    recent: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`why` is a sentence for operators. `looks` is set when a test was made, and has to be remembered."""

    action: Literal["advance", "hold", "promote", "roll_back"]
    reason: Literal[
        "guard", "regression", "not_worse", "step_done", "insufficient_data", "inconclusive", "step_time",
        "shared_failure", "breaker",
    ]  # fmt: skip
    why: str
    figures: dict[str, Any] = field(default_factory=dict)
    looks: Looks | None = None


def decide(progress: Progress, stable: Seen, candidate: Seen, now: float) -> Decision:
    """The next move of a release. `now`: seconds since the epoch."""
    plan = progress.plan
    guard = _guard(plan, stable, candidate)
    if guard is not None:
        return guard
    looks = _look(progress, stable, candidate)
    changed = looks if looks is not progress.looks else None
    worse = [metric for metric in looks.metrics if metric["verdict"] == "worse"]
    if worse:
        why = "; ".join(_sentence(metric) for metric in worse)
        return Decision(action="roll_back", reason="regression", why=why, figures=_figures(looks), looks=changed)

    def hold(reason: Any, why: str) -> Decision:
        return Decision(action="hold", reason=reason, why=why, figures=_figures(looks), looks=changed)

    seen, needed = candidate.strata[-1].requests, plan.analysis.min_samples
    if seen < needed:
        left = _time_left(seen, needed, now - progress.step_started_at)
        return hold("insufficient_data", f"{seen} of {needed} answers of the candidate in this step{left}")
    elapsed = now - progress.step_started_at
    if elapsed < plan.step_duration_s:
        return hold("step_time", f"{elapsed:.0f} of {plan.step_duration_s:.0f} s of this step have passed")
    last = progress.step >= len(plan.steps) - 1
    if last and plan.steps[-1] >= 100:
        # Nothing is left to compare with; what led here was tested before, and the guard rails were quiet.
        why = f"{elapsed:.0f} s with all traffic and quiet guard rails"
        return Decision(action="promote", reason="not_worse", why=why, figures=_figures(looks), looks=changed)
    if last or plan.steps[progress.step + 1] >= 100:
        return _promotion(progress, stable, candidate, looks, last=last)
    estimates = _metrics(plan, stable, candidate, z_low=0.0, z_high=0.0)
    missing = [metric["metric"] for metric in estimates if metric["verdict"] == "unknown"]
    if missing:
        return hold("insufficient_data", f"no {' and no '.join(missing)} figures of both versions yet")
    beyond = [metric for metric in estimates if metric["difference"] > metric["margin"]]
    if beyond:
        return hold("inconclusive", "; ".join(f"{_sentence(m)} so far, too little to be sure" for m in beyond))
    why = f"{seen} answers in {elapsed:.0f} s, no metric is worse than allowed"
    return Decision(action="advance", reason="step_done", why=why, figures=_figures(looks), looks=changed)


# ---- tests ----


def _spend(alpha: float, look: int) -> float:
    return alpha / (look * (look + 1))


def _samples(stable: Seen, candidate: Seen) -> int:
    """The candidate's answers in steps in which the stable version answered too."""
    pairs = zip(candidate.strata, stable.strata, strict=True)
    return sum(mine.requests for mine, theirs in pairs if theirs.requests > 0)


def _look(progress: Progress, stable: Seen, candidate: Seen) -> Looks:
    """The next test for a regression if enough samples came since the last one; otherwise what is known."""
    plan, before = progress.plan, progress.looks
    size, due = plan.analysis.min_samples * GROWTH**before.regression, before.regression
    have = _samples(stable, candidate)
    while have >= size:
        due, size = due + 1, size * GROWTH
    if due == before.regression:
        return before
    alpha = _spend(1 - plan.analysis.confidence, due) / _tested(plan)
    metrics = _metrics(plan, stable, candidate, z_low=z_of(alpha), z_high=z_of(1 - plan.analysis.confidence))
    return before.model_copy(update={"regression": due, "metrics": tuple(metrics)})


def _promotion(progress: Progress, stable: Seen, candidate: Seen, looks: Looks, *, last: bool) -> Decision:
    """Whether the candidate is proven not worse: the question before it gets everything."""
    plan, have = progress.plan, _samples(stable, candidate)
    if not looks.passed and have >= looks.passed_at * GROWTH:
        number = looks.passes + 1
        alpha = _spend(1 - plan.analysis.confidence, number)
        metrics = _metrics(plan, stable, candidate, z_low=z_of(alpha), z_high=z_of(alpha))
        # The lower bounds of this test are not those of a look for regressions: they may not roll back.
        metrics = [{**m, "verdict": "unclear"} if m["verdict"] == "worse" else m for m in metrics]
        if missing := [metric["metric"] for metric in metrics if metric["verdict"] == "unknown"]:
            # A look that could not have promoted is none: it spends nothing of the error probability.
            why = f"not yet {plan.analysis.min_samples} figures of both versions at a time for {', '.join(missing)}"
            looked = looks if looks is not progress.looks else None
            return Decision(action="hold", reason="insufficient_data", why=why, figures=_figures(looks), looks=looked)
        passed = all(metric["verdict"] == "not_worse" for metric in metrics)
        looks = looks.model_copy(
            update={"passes": number, "passed_at": have, "passed": passed, "metrics": tuple(metrics)}
        )
    changed = looks if looks is not progress.looks else None
    if looks.passed:
        why = "; ".join(_sentence(metric) for metric in looks.metrics)
        action: Any = "promote" if last else "advance"
        return Decision(action=action, reason="not_worse", why=why, figures=_figures(looks), looks=changed)
    unclear = [metric["metric"] for metric in looks.metrics if metric["verdict"] == "unclear"]
    wanted = math.ceil(looks.passed_at * GROWTH)
    why = f"not yet proven within the margins: {', '.join(unclear)}; next test at {wanted} answers, now {have}"
    return Decision(action="hold", reason="inconclusive", why=why, figures=_figures(looks), looks=changed)


def _tested(plan: ReleasePlan) -> int:
    return 2 + (plan.analysis.feedback is not None)


def _metrics(plan: ReleasePlan, stable: Seen, candidate: Seen, *, z_low: float, z_high: float) -> list[dict[str, Any]]:
    """Each metric with its difference (positive is worse), bounds, margin and verdict."""
    pairs = list(zip(candidate.strata, stable.strata, strict=True))
    errors = [Pair(mine.errors, mine.requests, theirs.errors, theirs.requests) for mine, theirs in pairs]
    rows = [_row("error_rate", errors, plan.analysis.error_rate, z_low, z_high, plan.analysis.min_samples)]
    slow = []
    for mine, theirs in pairs:
        limit = theirs.quantile_bucket(_P)
        if limit is not None and mine.latencies:
            # The stable's own share above its 95th percentile is 5 % by definition; its sample size still counts.
            above = mine.above(limit + buckets_of_ratio(plan.analysis.latency_p95))
            slow.append(Pair(above, mine.latencies, (1 - _P) * theirs.latencies, theirs.latencies))
    latency = _row("latency_p95", slow, 0.0, z_low, z_high, plan.analysis.min_samples)
    current, concurrent = candidate.strata[-1].quantile_ms(_P), stable.strata[-1].quantile_ms(_P)
    latency |= {"candidate_ms": current, "stable_ms": concurrent, "allowed_ratio": plan.analysis.latency_p95}
    rows.append(latency)
    if plan.analysis.feedback is not None:
        # Turned round, so that more is worse, as with errors.
        given = [
            Pair(m.feedback_n - m.feedback_sum, m.feedback_n, s.feedback_n - s.feedback_sum, s.feedback_n)
            for m, s in pairs
        ]
        rows.append(_row("feedback", given, plan.analysis.feedback, z_low, z_high, plan.analysis.min_samples))
    return rows


def _row(
    name: str, strata: Sequence[Pair], margin: float, z_low: float, z_high: float, min_samples: int
) -> dict[str, Any]:
    found = difference(strata, z_low=z_low, z_high=z_high)
    samples = int(sum(s.n_candidate for s in strata if s.n_stable > 0))
    row: dict[str, Any] = {"metric": name, "margin": margin, "samples": samples}
    if found is None or samples < min_samples:
        return row | {"verdict": "unknown", "difference": 0.0}
    verdict = "worse" if found.low > margin else "not_worse" if found.high <= margin else "unclear"
    return row | {
        "verdict": verdict,
        "candidate": round(found.candidate, 6),
        "stable": round(found.stable, 6),
        "difference": round(found.estimate, 6),
        "low": round(found.low, 6),
        "high": round(found.high, 6),
    }


# ---- guard rails ----


def _guard(plan: ReleasePlan, stable: Seen, candidate: Seen) -> Decision | None:
    for name, limit in plan.guard.items():
        windows = ((candidate.recent, stable.recent), (candidate.strata[-1], stable.strata[-1]))
        for mine, theirs in windows:
            bound = _breaks(name, limit, mine)
            if bound is None:
                continue
            figures = {
                "guard": name,
                "limit": limit,
                "candidate": {"requests": mine.requests, "errors": mine.errors, "feedback": mine.feedback_n},
                "bound": round(bound, 4),
            }
            if _breaks(name, limit, theirs) is not None:
                why = f"{name}: both versions break the guard rail of {limit:g}, so the candidate is not the cause"
                return Decision(action="hold", reason="shared_failure", why=why, figures=figures)
            why = f"guard rail {name}: the candidate is beyond {limit:g} ({_shown(name, mine)})"
            return Decision(action="roll_back", reason="guard", why=why, figures=figures)
    return None


def _breaks(name: str, limit: float, seen: Counts) -> float | None:
    """The 99.9 % bound of a figure if even that bound is beyond the limit."""
    if name == "error_rate" and seen.requests:
        low, _ = wilson(seen.errors / seen.requests, seen.requests, _GUARD_Z)
        return low if low > limit else None
    if name == "latency_p95_ms" and seen.latencies:
        low, _ = wilson(seen.above(bucket_of(limit)) / seen.latencies, seen.latencies, _GUARD_Z)
        return low if low > 1 - _P else None
    if name == "feedback" and seen.feedback_n:
        _, high = wilson(seen.feedback_sum / seen.feedback_n, seen.feedback_n, _GUARD_Z)
        return high if high < limit else None
    return None


def _shown(name: str, seen: Counts) -> str:
    if name == "error_rate":
        return f"{seen.errors} of {seen.requests} answers are errors"
    if name == "latency_p95_ms":
        return f"p95 {seen.quantile_ms(_P):g} ms"
    return f"mean {seen.feedback_sum / max(1, seen.feedback_n):.2f} of {seen.feedback_n} scores"


# ---- words ----


def _figures(looks: Looks) -> dict[str, Any]:
    return {"looks": looks.regression, "metrics": list(looks.metrics)} if looks.metrics else {}


def _sentence(metric: dict[str, Any]) -> str:
    name = metric["metric"]
    if name == "latency_p95":
        times = f"{metric['candidate_ms']} ms against {metric['stable_ms']} ms"
        allowed = f"{metric['allowed_ratio']:g} times allowed"
        return f"latency_p95 {times} ({allowed}; {metric.get('candidate', 0):.1%} of answers are slower than that)"
    label = "error_rate" if name == "error_rate" else "negative feedback"
    return (
        f"{label} {metric.get('candidate', 0):.2%} against {metric.get('stable', 0):.2%} "
        f"(worse by {metric.get('low', 0):+.2%} to {metric.get('high', 0):+.2%}; {metric['margin']:.2%} allowed)"
    )


def _time_left(seen: int, needed: int, elapsed_s: float) -> str:
    if seen <= 0 or elapsed_s <= 0:
        return ""
    return f" (at this rate about {(needed - seen) * elapsed_s / seen / 60:.0f} min more)"
