"""Generation parameters of one item, checked, and where a text must stop. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidInput

__all__ = ["GenerationParameters", "find_stop", "held_back", "read_parameters"]

_MAX_STOPS = 16
_NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
}
"""What would change the answer and is not implemented, with the values that ask for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParameters:
    """`temperature` 0 takes the likeliest token. `raw`: the prompt is continued as it is, without the chat template.

    `repetition_penalty` above 1 makes tokens that the answer already holds less likely (Keskar et al.,
    arXiv:1909.05858, section 4.1): a positive logit is divided by it, a negative one multiplied.
    """

    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    raw: bool
    repetition_penalty: float = 1.0


def read_parameters(given: Mapping[str, Any], defaults: GenerationParameters, *, most: int) -> GenerationParameters:
    """OpenAI's names (`max_completion_tokens` too); unknown ones are ignored. Raises `InvalidInput`, also for what is
    known and not done: an answer must not look as if it had been."""
    for name, neutral in _NOT_DONE.items():
        value = given.get(name)
        if value is not None and value not in neutral:
            raise InvalidInput(
                f"parameter {name!r} is not supported by this model, got {value!r:.80}", details={"param": name}
            )
    stop = given.get("stop")
    stops = defaults.stop if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) and s for s in stops) or len(stops) > _MAX_STOPS:
        raise InvalidInput(f"parameter 'stop' must be a text or a list of at most {_MAX_STOPS} texts, got {stop!r}")
    tokens = given.get("max_tokens")
    if tokens is None:
        tokens = given.get("max_completion_tokens")
    return GenerationParameters(
        max_tokens=_integer("max_tokens", tokens, defaults.max_tokens, 1, most),
        temperature=_number("temperature", given.get("temperature"), defaults.temperature, 0.0, 2.0),
        top_p=_number("top_p", given.get("top_p"), defaults.top_p, 0.0, 1.0),
        stop=tuple(stops),
        seed=_seed(given.get("seed"), defaults.seed),
        raw=bool(given.get("raw", defaults.raw)),
        repetition_penalty=_number(
            "repetition_penalty", given.get("repetition_penalty"), defaults.repetition_penalty, 1.0, 2.0
        ),
    )


def _integer(name: str, value: Any, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise InvalidInput(f"parameter {name!r} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise InvalidInput(f"parameter {name!r} must be from {low} to {high}, got {value!r}")
    return int(value)


def _number(name: str, value: Any, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidInput(f"parameter {name!r} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def _seed(value: Any, default: int | None) -> int | None:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"parameter 'seed' must be a whole number, got {value!r}")
    return value % (1 << 63)


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins; None when there is none."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the start of a stop text, and so must not be sent yet."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
