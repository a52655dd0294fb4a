"""Chooses among models by how they do right now: latency, error rate and cost, with a bounded share of exploration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidConfig

__all__ = ["AdaptivePolicy", "Candidate", "choose", "parse_policy"]

_MAX_EXPLORE = 0.25
_MOST = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model as the router sees it now: smoothed latency (seconds), error rate (0-1), cost per request, requests
    seen."""

    model: str
    latency_s: float | None = None
    error_rate: float = 0.0
    cost: float = 0.0
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePolicy:
    """What `adaptive:` of a route says.

    `latency`, `error` and `cost` are the weights of the three in the score; `explore` is the share of requests that
    go to the least known candidate whatever its score (at most a quarter); a candidate with fewer than `min_samples`
    requests is only met by exploring, except when no candidate is known yet.
    """

    candidates: tuple[str, ...]
    latency: float = 1.0
    error: float = 4.0
    cost: float = 0.0
    explore: float = 0.05
    min_samples: int = 20


def parse_policy(route: str, raw: Mapping[str, Any]) -> AdaptivePolicy:
    """The `adaptive:` mapping of a route as a policy. Raises InvalidConfig with the key that is wrong."""
    where = f"routes.{route}.adaptive"
    known = {"candidates", "latency", "error", "cost", "explore", "min_samples"}
    for key in raw:
        if key not in known:
            raise InvalidConfig(f"{where}: unknown key '{key}'; known are {', '.join(sorted(known))}")
    candidates = raw.get("candidates")
    if not isinstance(candidates, list | tuple) or not candidates or not all(isinstance(c, str) for c in candidates):
        raise InvalidConfig(f"{where}.candidates: must be a list of model names")
    numbers: dict[str, float] = {}
    for key in ("latency", "error", "cost", "explore", "min_samples"):
        if key not in raw:
            continue
        value = raw[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
            raise InvalidConfig(f"{where}.{key}: must be a number from 0 to {_MOST:g}, not {value!r:.40}")
        numbers[key] = float(value)
    if numbers.get("explore", 0.0) > _MAX_EXPLORE:
        raise InvalidConfig(f"{where}.explore: at most {_MAX_EXPLORE}, since every explored request may be a worse one")
    plain = AdaptivePolicy(candidates=tuple(candidates))
    return AdaptivePolicy(
        candidates=plain.candidates,
        latency=numbers.get("latency", plain.latency),
        error=numbers.get("error", plain.error),
        cost=numbers.get("cost", plain.cost),
        explore=numbers.get("explore", plain.explore),
        min_samples=int(numbers.get("min_samples", plain.min_samples)),
    )


def choose(policy: AdaptivePolicy, candidates: Sequence[Candidate], *, roll: float) -> tuple[str, str]:
    """The model for this request, and why in one clause. `roll` in [0, 1) decides about exploring.

    The score is `latency * l/l_best + error * error_rate + cost * c/c_best`, smaller is better. Raises ValueError
    without candidates.
    """
    if not candidates:
        raise ValueError("no candidate can answer")
    known = [c for c in candidates if c.samples >= policy.min_samples and c.latency_s is not None]
    if not known:
        least = min(candidates, key=lambda c: (c.samples, c.model))
        return least.model, f"nothing is known yet; {least.model} was asked least ({least.samples})"
    if len(candidates) > 1 and roll < policy.explore:
        least = min(candidates, key=lambda c: (c.samples, c.model))
        return least.model, f"exploring ({policy.explore:.0%} of requests): {least.model} was asked least"
    best_latency = max(min(c.latency_s or 0.0 for c in known), 1e-6)
    best_cost = max(min((c.cost for c in known if c.cost > 0), default=1.0), 1e-12)

    def score(c: Candidate) -> float:
        latency = policy.latency * (c.latency_s or 0.0) / best_latency
        return latency + policy.error * c.error_rate + policy.cost * c.cost / best_cost

    best = min(known, key=lambda c: (score(c), c.model))
    return best.model, (
        f"best score {score(best):.2f} (latency {1000 * (best.latency_s or 0):.1f} ms, "
        f"errors {best.error_rate:.1%}, cost {best.cost:g})"
    )
