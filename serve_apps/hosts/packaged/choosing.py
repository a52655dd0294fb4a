"""The next token from its logits, and by how much it leads: sampling that small differences of the logits don't change.

Adding Gumbel noise and taking the greatest draws from the softmax (Maddison et al., arXiv:1411.0030). Unlike a draw
from cumulated sums, the outcome changes only when two leaders are close; then the margin is small, and the caller can
compute the logits again in a way that does not depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from serve_apps.hosts.packaged.sampling import GenerationParameters

__all__ = ["choose"]

_FIRST = 64
"""Candidates that are looked at first. With a temperature of 0.2 and a top_p of 0.9 they nearly always suffice, and
sorting the whole vocabulary took as long as a twelfth of the model's own work."""
_NONE = 1e-12
"""A `top_p` of 0 leaves the likeliest token only."""


def choose(
    logits: Any, *, noise: Any, tokens: Sequence[int], parameters: GenerationParameters, tolerance: float
) -> tuple[int, float]:
    """The token, and its lead over the runner-up in logits.

    `logits`: float32 [vocabulary]. `noise`: float64 [vocabulary], uniform in [0, 1), drawn for this step (not used with
    temperature 0). `tokens`: the answer so far, for the repetition penalty. `tolerance`: by how much two computations
    of the same logits may differ; where such a difference could change which tokens `top_p` leaves, the lead is 0.
    """
    import torch

    temperature, top_p = parameters.temperature, parameters.top_p
    if parameters.repetition_penalty > 1 and tokens:
        seen = torch.tensor(sorted(set(tokens)))
        logits = logits.clone()
        penalty = parameters.repetition_penalty
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if temperature == 0:
        best = logits.topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1])
    if top_p >= 1:
        noisy = logits.double() / temperature + _gumbel(noise)
        best = noisy.topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1]) * temperature
    order, scores, ahead = _likeliest(logits, temperature, max(top_p, _NONE), tolerance / temperature)
    exact, possible = (max(int((mass < max(top_p, _NONE)).sum()), 1) for mass in (ahead.exact, ahead.least))
    noisy = (scores + _gumbel(noise[order]))[:possible]
    chosen = int(noisy[:exact].argmax())
    best = noisy.topk(min(2, possible))
    if int(best.indices[0]) != chosen or float(ahead.most[chosen]) >= max(top_p, _NONE):
        return int(order[chosen]), 0.0
    lead = float(best.values[0] - best.values[1]) if possible > 1 else float("inf")
    return int(order[chosen]), lead * temperature


class _Ahead(NamedTuple):
    """Probability of all tokens that are likelier than each one: as computed, and the most and the least that it can
    be when the scores are a little different. Tokens that are nearly alike change places then."""

    exact: Any
    most: Any
    least: Any


def _likeliest(logits: Any, temperature: float, mass: float, delta: float) -> tuple[Any, Any, _Ahead]:
    """The likeliest tokens, in order, that hold `mass` of the probability (or more) although any two scores (logits
    over temperature) may change by `delta` against each other. Tokens, scores, what is ahead of each. Float64."""
    import torch

    total = torch.logsumexp(logits.double() / temperature, 0)
    count = _FIRST
    while True:
        best = logits.topk(min(count, len(logits)))
        scores = best.values.double() / temperature
        shares = (scores - total).exp()
        sums = torch.cat([shares.new_zeros(1), shares.cumsum(0)])
        rising = -scores
        surely = sums[torch.searchsorted(rising, rising - delta)]
        perhaps = sums[torch.searchsorted(rising, rising + delta, right=True)] - shares
        ahead = _Ahead(sums[:-1], perhaps * math.exp(delta), surely * math.exp(-delta))
        # What lies behind the last one, and might be ahead of another, matters only where enough is ahead already.
        if count >= len(logits) or float(ahead.least[-1]) >= mass:
            return best.indices, scores, ahead
        count *= 8


def _gumbel(uniform: Any) -> Any:
    return -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
