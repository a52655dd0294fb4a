"""The next token from its logits, and by how much it leads: sampling that small differences of the logits don't change.

Adding Gumbel noise and taking the greatest draws from the softmax (Maddison et al., arXiv:1411.0030). Unlike a draw
from cumulated sums, the outcome changes only when two leaders are close; then the margin is small, and the caller can
compute the logits again in a way that does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_apps.hosts.packaged.sampling import GenerationParameters

__all__ = ["choose"]

_FIRST = 64
"""Candidates that are looked at first. With a temperature of 0.2 and a top_p of 0.9 they nearly always suffice, and
sorting the whole vocabulary took as long as a twelfth of the model's own work."""
_SLACK = 0.05


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
    slack = min(_SLACK, tolerance / temperature)
    order, scores, before = _likeliest(logits, temperature, top_p + slack)
    certain = max(int((before < top_p - slack).sum()), 1)
    exact = max(int((before < top_p).sum()), 1)
    possible = max(int((before < top_p + slack).sum()), 1)
    noisy = (scores + _gumbel(noise[order]))[:possible]
    chosen = int(noisy[:exact].argmax())
    best = noisy.topk(min(2, possible))
    if int(best.indices[0]) != chosen or chosen >= certain:
        return int(order[chosen]), 0.0
    lead = float(best.values[0] - best.values[1]) if possible > 1 else float("inf")
    return int(order[chosen]), lead * temperature


def _likeliest(logits: Any, temperature: float, mass: float) -> tuple[Any, Any, Any]:
    """The likeliest tokens, in order, that hold `mass` of the probability (or more): token, score (logit over
    temperature), and the probability of all tokens before it. Float64."""
    import torch

    total = torch.logsumexp(logits.double() / temperature, 0)
    count = _FIRST
    while True:
        best = logits.topk(min(count, len(logits)))
        scores = best.values.double() / temperature
        shares = (scores - total).exp()
        before = shares.cumsum(0) - shares
        if count >= len(logits) or float(before[-1] + shares[-1]) > mass:
            return best.indices, scores, before
        count *= 8


def _gumbel(uniform: Any) -> Any:
    return -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
