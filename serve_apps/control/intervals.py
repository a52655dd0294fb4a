"""Confidence bounds for proportions and their differences. Pure.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927),
209-212 (score interval); R. G. Newcombe, "Interval estimation for the difference between independent proportions",
Statistics in Medicine 17 (1998), 873-890, method 10 (the hybrid score interval); X. Yan and X. G. Su, "Stratified
Wilson and Newcombe confidence intervals for multiple binomial proportions", Statistics in Biopharmaceutical Research 2
(2010), 329-335 (strata pooled with weights; here Mantel-Haenszel's, with the sample size of the pooled variance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["Difference", "Pair", "difference", "wilson", "z_of"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One stratum: `x` of `n` in each arm. `x` may be a sum of scores between 0 and 1: such scores vary at most as
    much as 0/1 outcomes of the same mean, so the bounds stay valid."""

    x_candidate: float
    n_candidate: float
    x_stable: float
    n_stable: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate minus stable, over all strata: pooled proportions, and one-sided bounds of the difference."""

    candidate: float
    stable: float
    low: float
    high: float

    @property
    def estimate(self) -> float:
        return self.candidate - self.stable


def z_of(alpha: float) -> float:
    """The normal quantile for a one-sided error probability."""
    return NormalDist().inv_cdf(1 - alpha)


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion `p` observed in `n` tries."""
    if n <= 0:
        return 0.0, 1.0
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def difference(strata: Sequence[Pair], *, z_low: float, z_high: float) -> Difference | None:
    """Newcombe's interval over strata; None when no stratum has samples of both arms.

    The versions are compared within each stratum only: a change of traffic between steps (which changes the shares
    of the arms) would otherwise look like a difference between versions (Simpson's paradox).
    """
    both = [s for s in strata if s.n_candidate > 0 and s.n_stable > 0]
    if not both:
        return None
    weights = [s.n_candidate * s.n_stable / (s.n_candidate + s.n_stable) for s in both]
    total = sum(weights)
    shares = [weight / total for weight in weights]
    candidate = sum(share * s.x_candidate / s.n_candidate for share, s in zip(shares, both, strict=True))
    stable = sum(share * s.x_stable / s.n_stable for share, s in zip(shares, both, strict=True))
    n_candidate = 1 / sum(share**2 / s.n_candidate for share, s in zip(shares, both, strict=True))
    n_stable = 1 / sum(share**2 / s.n_stable for share, s in zip(shares, both, strict=True))
    low_candidate, _ = wilson(candidate, n_candidate, z_low)
    _, high_stable = wilson(stable, n_stable, z_low)
    _, high_candidate = wilson(candidate, n_candidate, z_high)
    low_stable, _ = wilson(stable, n_stable, z_high)
    estimate = candidate - stable
    return Difference(
        candidate=candidate,
        stable=stable,
        low=estimate - math.hypot(candidate - low_candidate, high_stable - stable),
        high=estimate + math.hypot(high_candidate - candidate, stable - low_stable),
    )
