"""The next token: against the plain definition, and under small differences of the logits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.hosts.packaged.choosing import choose
from serve_apps.hosts.packaged.sampling import GenerationParameters

torch = pytest.importorskip("torch")
SIZE = 1000


def parameters(temperature: float, top_p: float, penalty: float = 1.0) -> GenerationParameters:
    return GenerationParameters(
        max_tokens=8, temperature=temperature, top_p=top_p, stop=(), seed=1, raw=False, repetition_penalty=penalty
    )


def drawn(seed: int, spread: float) -> tuple[Any, Any]:
    """Logits of the given spread (small: nearly all tokens are alike) and noise."""
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(SIZE, generator=source) * spread
    return logits, torch.rand(SIZE, generator=source, dtype=torch.float64)


def by_definition(logits: Any, noise: Any, temperature: float, top_p: float) -> int:
    """Sort everything, cut at top_p, add the noise, take the greatest."""
    scores = logits.double() / temperature
    order = scores.argsort(descending=True, stable=True)
    shares = scores[order].softmax(0)
    kept = order[(shares.cumsum(0) - shares) < top_p] if top_p > 0 else order[:1]
    noisy = scores[kept] - (-noise[kept].clamp(1e-300, 1 - 1e-16).log()).log()
    return int(kept[noisy.argmax()])


settings = {
    "seed": st.integers(0, 10_000),
    "spread": st.sampled_from([0.01, 1.0, 4.0, 12.0]),
    "temperature": st.sampled_from([0.2, 0.7, 1.0, 2.0]),
    "top_p": st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
}


@given(**settings)
def test_the_token_is_the_one_of_the_definition(seed: int, spread: float, temperature: float, top_p: float) -> None:
    """Looking at the likeliest few first changes nothing, also where nearly all tokens are needed."""
    logits, noise = drawn(seed, spread)
    token, lead = choose(logits, noise=noise, tokens=[], parameters=parameters(temperature, top_p), tolerance=1e-3)
    assert token == by_definition(logits, noise, temperature, top_p)
    assert lead >= 0


@given(**settings, other=st.integers(0, 10_000))
def test_a_token_that_leads_by_the_tolerance_stays_when_the_logits_differ_by_half_of_it(
    seed: int, spread: float, temperature: float, top_p: float, other: int
) -> None:
    """So a row in a batch, whose numbers differ a little from those of the row alone, gets the same token, or a lead
    so small that it is computed alone."""
    tolerance = 1e-3
    logits, noise = drawn(seed, spread)
    chosen = parameters(temperature, top_p)
    token, lead = choose(logits, noise=noise, tokens=[], parameters=chosen, tolerance=tolerance)
    moved = logits + (torch.rand(SIZE, generator=torch.Generator().manual_seed(other)) - 0.5) * tolerance
    again, _ = choose(moved, noise=noise, tokens=[], parameters=chosen, tolerance=tolerance)
    assert again == token or lead < tolerance


def test_without_temperature_the_likeliest_token_is_taken() -> None:
    """No noise is needed, and the lead is the plain difference."""
    logits = torch.tensor([0.0, 3.0, 2.5])
    assert choose(logits, noise=None, tokens=[], parameters=parameters(0.0, 0.9), tolerance=1e-3) == (1, 0.5)


def test_tokens_that_the_answer_holds_become_less_likely() -> None:
    """Positive logits are divided by the penalty, negative ones multiplied; the given logits are left as they are."""
    logits = torch.tensor([4.0, 3.0, -1.0])
    chosen = parameters(0.0, 1.0, penalty=2.0)
    assert choose(logits, noise=None, tokens=[0, 0], parameters=chosen, tolerance=1e-3) == (1, 1.0)
    assert choose(torch.tensor([-1.0, -1.5]), noise=None, tokens=[0], parameters=chosen, tolerance=0)[0] == 1
    assert logits.tolist() == [4.0, 3.0, -1.0]


def test_the_only_token_that_is_left_leads_without_end() -> None:
    """With top_p 0 nothing else can be drawn, so there is nothing to compute again."""
    logits, noise = torch.tensor([9.0, 0.0, 0.0]), torch.rand(3, dtype=torch.float64)
    assert choose(logits, noise=noise, tokens=[], parameters=parameters(1.0, 0.5), tolerance=1e-3) == (0, float("inf"))


def test_prompts_are_read_with_others_of_like_length() -> None:
    """One long prompt is read alone, short ones together; every row is in exactly one group."""
    from serve_apps.hosts.packaged.text import _Row, like_lengths

    rows = [
        _Row(place=place, prompt=[0] * length, parameters=parameters(1.0, 1.0), generator=None)
        for place, length in enumerate([30, 500, 36, 33, 20, 270, 31])
    ]
    groups = [[row.place for row in group] for group in like_lengths(rows)]
    assert groups == [[1, 5], [2, 3, 6, 0, 4]]
    assert like_lengths([]) == []
