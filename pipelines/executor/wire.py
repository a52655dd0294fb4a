"""Attempts and outcomes as bytes for Ray: plain pickle of plain values, several times cheaper than dataclasses."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from cluster.config.models import Resources
from pipelines.executor.port import Attempt, Outcome

__all__ = ["decode_attempt", "decode_outcome", "encode_attempt", "encode_outcome"]

# Resources are for the scheduler; the worker has no use for them.
_FIELDS = tuple(field.name for field in dataclasses.fields(Attempt) if field.name != "resources")
_NO_RESOURCES = Resources()
_ENDS = tuple(field.name for field in dataclasses.fields(Outcome))


def encode_attempt(attempt: Attempt, callable_path: str | None) -> bytes:
    """For `decode_attempt` in a process of the same release."""
    values: list[Any] = [getattr(attempt, name) for name in _FIELDS]
    return pickle.dumps((values, callable_path), protocol=pickle.HIGHEST_PROTOCOL)


def decode_attempt(data: bytes) -> tuple[Attempt, str | None]:
    values, callable_path = pickle.loads(data)
    return Attempt(**dict(zip(_FIELDS, values, strict=True)), resources=_NO_RESOURCES), callable_path


def encode_outcome(outcome: Outcome) -> bytes:
    return pickle.dumps([getattr(outcome, name) for name in _ENDS], protocol=pickle.HIGHEST_PROTOCOL)


def decode_outcome(data: bytes) -> Outcome:
    return Outcome(**dict(zip(_ENDS, pickle.loads(data), strict=True)))
