"""What a submit may hold: an input and a few words that the log can keep. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import InvalidInput
from pipelines.spec.plain import encoded
from pipelines.spec.sense import MAX_SEED

__all__ = ["MAX_PRIORITY", "checked_input"]

MAX_PRIORITY = 9
_BESIDE = ("caller", "idempotency_key", "version", "webhook", "workflow")


def checked_input(request: Mapping[str, Any]) -> bytes:
    """The input of a submit as JSON. Raises `InvalidInput` for it, or for what comes with it."""
    _check_number("priority", request.get("priority"), MAX_PRIORITY)
    _check_number("seed", request.get("seed"), MAX_SEED)
    for name in _BESIDE:
        encoded(request.get(name), f"`{name}`")
    return encoded(request.get("input"), "the input")


def _check_number(name: str, value: Any, most: int) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise InvalidInput(f"`{name}` is {value!r}: use a whole number from 0 to {most}")
