"""Chooses a version by weight: at random, or always the same one for the same caller key.

A key's version is chosen by weighted rendezvous hashing (Thaler and Ravishankar 1998; the logarithm method of
Schindelhauer and Schomaker 2005): every version gets the score -w / ln(u), with u in (0, 1) from a hash of key,
experiment and version, and the best score wins. Shares are exactly proportional to the weights, and when one weight
grows relative to the others, callers only ever move *to* that version: whoever was with a candidate at 5 % is still
there at 25 %.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

__all__ = ["by_key", "by_roll", "normalised", "unit_interval"]

_SCALE = 2.0**-64


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1, without those that are zero or less; empty when none is positive."""
    positive = {version: weight for version, weight in weights.items() if weight > 0}
    total = math.fsum(positive.values())
    return {version: weight / total for version, weight in positive.items()} if total > 0 else {}


def unit_interval(*parts: str) -> float:
    """A number in (0, 1) that depends on `parts` only. Never 0 or 1."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(errors="surrogatepass"), digest_size=8).digest()
    # 2**-64 * (2**64 - 0.5) rounds to 1.0, hence the clamp.
    return min((int.from_bytes(digest, "big") + 0.5) * _SCALE, 1.0 - 2.0**-53)


def by_key(weights: Mapping[str, float] | Sequence[tuple[str, float]], key: str, *, experiment: str = "") -> str:
    """The version of the caller `key`: the same for the same weights, key and experiment.

    Weights are any non-negative numbers. Raises ValueError when none is positive.
    """
    best, best_score = "", 0.0
    for version, weight in weights.items() if isinstance(weights, Mapping) else weights:
        if weight <= 0:
            continue
        score = -weight / math.log(unit_interval(experiment, key, version))
        if score > best_score or (score == best_score and version > best):
            best, best_score = version, score
    if not best:
        raise ValueError("no version has a positive weight")
    return best


def by_roll(weights: Mapping[str, float] | Sequence[tuple[str, float]], roll: float) -> str:
    """The version that a random `roll` in [0, 1) falls on. Raises ValueError when no weight is positive."""
    pairs = list(weights.items() if isinstance(weights, Mapping) else weights)
    total = math.fsum(weight for _, weight in pairs if weight > 0)
    point, last = roll * total, ""
    for version, weight in pairs:
        if weight <= 0:
            continue
        last = version
        point -= weight
        if point < 0:
            return version
    if not last:
        raise ValueError("no version has a positive weight")
    return last
