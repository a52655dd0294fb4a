"""What an executor reports, made such that the log can hold it: the code of steps had its hands on all of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.errors import InvalidInput
from cluster.retry_after import MAX_RETRY_AFTER_S
from pipelines.executor.errors import ResultNotSerialisable
from pipelines.executor.port import Outcome
from pipelines.spec.plain import encoded, forced, text

__all__ = ["storable"]


def storable(outcome: Outcome) -> Outcome:
    """The outcome itself where it can be kept as JSON; else a failure that says so, with as much of it as can be."""
    try:
        if outcome.output is not None:
            encoded(outcome.output, "the step's result")
        if isinstance(outcome.output, float) and not math.isfinite(outcome.output):
            raise InvalidInput(f"the step's result is {outcome.output}, which JSON cannot hold")
    except InvalidInput as why:
        failure = ResultNotSerialisable(why.message)
        outcome = replace(outcome, status="failed", output=None, error=failure.to_dict())
    if outcome.error is not None:
        outcome = replace(outcome, error=_error(outcome.error))
    if outcome.chosen or outcome.log:
        outcome = replace(outcome, chosen=_mapping(outcome.chosen), log=_mapping(outcome.log))
    return outcome


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    """The form of `HeadraceError.to_dict()`, whatever a script put into its error."""
    out = dict(_mapping(error) or {})
    out["code"], out["message"] = text(error.get("code", "step_error")), text(error.get("message", ""))
    details = error.get("details")
    if details is not None and not isinstance(details, Mapping):
        out["details"] = {"details": forced(details)}
    after = error.get("retry_after_s")
    if not isinstance(after, int | float) or not math.isfinite(after):
        out.pop("retry_after_s", None)
    else:
        out["retry_after_s"] = min(max(after, 0), MAX_RETRY_AFTER_S)
    return out


def _mapping(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    try:
        encoded(value)
    except InvalidInput:
        made: dict[str, Any] = forced(value)
        return made
    return value
