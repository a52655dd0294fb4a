"""Generation parameters and stop texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from serve_apps.hosts.packaged.sampling import GenerationParameters, find_stop, held_back, read_parameters

DEFAULTS = GenerationParameters(max_tokens=64, temperature=0.2, top_p=0.9, stop=(), seed=None, raw=False)


def test_given_parameters_win_over_the_defaults() -> None:
    """OpenAI's names are read, `max_completion_tokens` too; nulls mean the default."""
    given_ = {"max_completion_tokens": 5, "temperature": 0, "top_p": None, "stop": "\n", "seed": -1, "user": "x"}
    given_ |= {"response_format": {"type": "text"}, "presence_penalty": 0.0, "logit_bias": {}}
    assert read_parameters(given_, DEFAULTS, most=100) == GenerationParameters(
        max_tokens=5, temperature=0.0, top_p=0.9, stop=("\n",), seed=(1 << 63) - 1, raw=False
    )
    assert read_parameters({}, DEFAULTS, most=100) == DEFAULTS


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 101},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": "5"},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"stop": 3},
        {"seed": "1"},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"top_k": 40},
    ],
)
def test_a_wrong_parameter_is_named(wrong: dict[str, Any]) -> None:
    """The error names the parameter and shows what came."""
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        read_parameters(wrong, DEFAULTS, most=100)


@given(
    text=st.text("ab#", max_size=40),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_what_is_streamed_never_holds_part_of_a_stop_text(text: str, stops: list[str], cuts: list[int]) -> None:
    """However a text grows, the pieces sent add up to the text before the first stop that appears, and no more."""
    sent, grown, position = "", "", 0
    for cut in cuts:
        grown += text[position : position + cut]
        position += cut
        end = find_stop(grown, stops)
        if end is not None:
            assert sent == grown[: len(sent)]
            assert len(sent) <= end, "a part of a stop text was sent"
            return
        safe = len(grown) - held_back(grown, stops)
        sent = grown[: max(safe, len(sent))]
    assert find_stop(sent, stops) is None


def test_repetition_penalty_is_read_and_bounded() -> None:
    """A request may set the repetition penalty from 1 to 2; without it the version's own holds."""
    defaults = GenerationParameters(
        max_tokens=8, temperature=0.0, top_p=1.0, stop=(), seed=None, raw=False, repetition_penalty=1.2
    )
    assert read_parameters({}, defaults, most=100).repetition_penalty == 1.2
    assert read_parameters({"repetition_penalty": 1.5}, defaults, most=100).repetition_penalty == 1.5
    with pytest.raises(InvalidInput, match="repetition_penalty"):
        read_parameters({"repetition_penalty": 0.5}, defaults, most=100)
