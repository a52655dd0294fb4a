"""Simulated releases: how often `decide` is wrong. For the tests (few, seeded) and benchmarks/releases.py (many).

Time passes in ticks; each tick brings Poisson arrivals, split by the step's share, with errors, log-normal latencies
and binary feedback drawn from each version's truth. Nothing here is part of the product's own path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from serve_apps.control.decide import Decision, Looks, Progress, Seen, decide
from serve_apps.control.release import ReleasePlan
from serve_apps.control.samples import LOG_RATIO, SMALLEST_MS, Counts

__all__ = ["Outcome", "Traffic", "Truth", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a version really does. Latency is log-normal with this median (ms) and spread."""

    error_rate: float = 0.005
    median_ms: float = 50.0
    sigma: float = 0.4
    feedback_mean: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests per second of the model, the share that gets feedback, and how the world drifts for both versions."""

    rps: float = 20.0
    feedback_share: float = 0.0
    error_drift: float = 0.0
    """Added to both versions' error rate per hour: an upstream that gets worse is not the candidate's doing."""
    latency_drift: float = 0.0
    """Both versions' latencies grow by this share per hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a release ended: `promoted`, `rolled_back` or `held` (still open after `limit_s`)."""

    end: str
    reason: str
    seconds: float
    candidate_requests: int
    candidate_errors: int
    figures: dict[str, object] = field(default_factory=dict)


def simulate(
    plan: ReleasePlan,
    stable: Truth,
    candidate: Truth,
    traffic: Traffic,
    *,
    random: np.random.Generator,
    tick_s: float = 10.0,
    limit_s: float = 6 * 3600.0,
    recent_ticks: int = 3,
    rule: Callable[[Progress, Seen, Seen, float], Decision] = decide,
) -> Outcome:
    """Run one release to its end. `rule`: another way to decide, to be compared with `decide`."""
    progress = Progress(plan=plan, step=0, step_started_at=0.0, looks=Looks())
    strata: dict[str, list[Counts]] = {"stable": [Counts()], "candidate": [Counts()]}
    recent: dict[str, list[Counts]] = {"stable": [], "candidate": []}
    now = 0.0
    while now < limit_s:
        now += tick_s
        share = plan.steps[min(progress.step, len(plan.steps) - 1)] / 100
        for name, truth, part in (("stable", stable, 1 - share), ("candidate", candidate, share)):
            counts = _tick(truth, traffic, part * traffic.rps * tick_s, now, random)
            strata[name][-1].add(counts)
            recent[name] = [*recent[name][-(recent_ticks - 1) :], counts]
        seen = {name: Seen(strata=strata[name], recent=_sum(recent[name])) for name in strata}
        decision = rule(progress, seen["stable"], seen["candidate"], now)
        if decision.looks is not None:
            progress = replace(progress, looks=decision.looks)
        if decision.action in ("promote", "roll_back"):
            end = "promoted" if decision.action == "promote" else "rolled_back"
            return _outcome(end, decision.reason, now, strata["candidate"], decision.figures)
        if decision.action == "advance":
            progress = replace(progress, step=progress.step + 1, step_started_at=now)
            for name in strata:
                strata[name].append(Counts())
    return _outcome("held", decision.reason, now, strata["candidate"], decision.figures)


def _outcome(end: str, reason: str, now: float, strata: list[Counts], figures: dict[str, object]) -> Outcome:
    return Outcome(
        end=end,
        reason=reason,
        seconds=now,
        candidate_requests=sum(counts.requests for counts in strata),
        candidate_errors=sum(counts.errors for counts in strata),
        figures=figures,
    )


def _sum(parts: list[Counts]) -> Counts:
    total = Counts()
    for part in parts:
        total.add(part)
    return total


def _tick(truth: Truth, traffic: Traffic, expected: float, now: float, random: np.random.Generator) -> Counts:
    requests = int(random.poisson(expected)) if expected > 0 else 0
    rate = min(1.0, truth.error_rate + traffic.error_drift * now / 3600)
    errors = int(random.binomial(requests, rate))
    counts = Counts(requests=requests, errors=errors)
    good = requests - errors
    if good:
        median = truth.median_ms * (1 + traffic.latency_drift * now / 3600)
        values = random.lognormal(math.log(median), truth.sigma, size=good)
        keys, numbers = np.unique(_buckets(values), return_counts=True)
        counts.latency = dict(zip(keys.tolist(), numbers.tolist(), strict=True))
    scored = int(random.binomial(good, traffic.feedback_share)) if traffic.feedback_share else 0
    counts.feedback_n = scored
    counts.feedback_sum = float(random.binomial(scored, truth.feedback_mean)) if scored else 0.0
    return counts


def _buckets(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`bucket_of` for a whole array (a test says that they agree)."""
    steps = np.log(np.maximum(values, SMALLEST_MS) / SMALLEST_MS) / LOG_RATIO
    return np.maximum(0, np.ceil(steps - 1e-9)).astype(np.int64)
