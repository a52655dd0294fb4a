"""What a request asks beyond text and sampling (tools, log probabilities, …), and which versions do it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config.models import ModelConfig
from cluster.errors import InvalidInput

__all__ = ["NEEDS", "lacking", "needs_of"]

NEEDS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "tools": ("tool calls", ()),
    "tool_choice": ("tool calls", ("none",)),
    "functions": ("function calls", ()),
    "function_call": ("function calls", ("none",)),
    "logprobs": ("log probabilities", ()),
    "top_logprobs": ("log probabilities", (0,)),
    "audio": ("audio", ()),
    "modalities": ("answers other than text", (["text"],)),
    "web_search_options": ("web searches", ()),
    "suffix": ("suffixes", ()),
    "best_of": ("several tries of which the best is kept", (1,)),
    "echo": ("repeating the prompt", ()),
}
"""Fields of OpenAI's API that change what is answered: what each asks for, and the values that ask for nothing."""
_WITH = ("parallel_tool_calls",)
"""Fields that only say how one of the others is meant."""
_DONE_BY = frozenset({"openai_compatible"})
"""Providers that pass them on to something that knows them."""


def needs_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `body` that only some versions do, as they are to be passed on; empty when nothing is asked for."""
    if not any(_asks(key, body[key]) for key in NEEDS if key in body):
        return {}
    # All of them: `tool_choice: none` asks for nothing alone, and for much beside `tools`.
    return {key: body[key] for key in (*NEEDS, *_WITH) if body.get(key) is not None}


def _asks(key: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}, ""):
        return False
    # `True == 1` in Python: a flag that is set must not pass for the number.
    return isinstance(value, bool) or value not in NEEDS[key][1]


def lacking(config: ModelConfig, model: str, version: str, needs: Mapping[str, Any]) -> InvalidInput | None:
    """Why `version` of `model` cannot do what a request needs; None: it can."""
    asked = next((key for key, value in needs.items() if key in NEEDS and _asks(key, value)), None)
    known = config.versions.get(version)
    if asked is None or (known is not None and known.provider in _DONE_BY):
        return None
    return InvalidInput(
        f"'{asked}' is not supported by {model} {version} ({NEEDS[asked][0]}): only versions of the provider "
        "openai_compatible pass it on",
        details={"param": asked},
    )
