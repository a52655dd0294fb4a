"""Golden requests: a version's own examples with what their answers must hold. They run before traffic moves to it.

    golden:
      - inputs: {prompt: "2+2="}
        parameters: {max_tokens: 4}
        expect: {text: {contains: "4"}}
        max_ms: 2000

Conditions per output: `equals`, `contains`, `matches` (regular expression), `one_of`, `close_to` with `tolerance`,
`min`, `max`, `min_length`, `length`, `not_empty`. Bytes are written as `{"$base64": "…"}`. Pure but for the port.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.errors import HeadraceError, InvalidInput
from serve_apps.control.ports import Deployer
from serve_apps.protocol import InferRequest, InferResult

__all__ = ["check_answer", "problems_in_golden", "run_golden", "to_request"]

_KEYS = {"inputs", "parameters", "expect", "max_ms", "name"}
_CONDITIONS = {
    "equals", "contains", "matches", "one_of", "close_to", "tolerance", "min", "max", "min_length", "length",
    "not_empty",
}  # fmt: skip
DEFAULT_TOLERANCE = 1e-3


def problems_in_golden(golden: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a version's golden requests, before any of them runs."""
    problems = []
    for index, item in enumerate(golden):
        if unknown := set(item) - _KEYS:
            problems.append(
                f"golden[{index}]: unknown {', '.join(sorted(unknown))} (known: {', '.join(sorted(_KEYS))})"
            )
        if not isinstance(item.get("inputs"), Mapping) or not item["inputs"]:
            problems.append(f"golden[{index}]: `inputs` is missing (name: value)")
        for output, conditions in (item.get("expect") or {}).items():
            if not isinstance(conditions, Mapping):
                continue  # a plain value means `equals`
            if unknown := set(conditions) - _CONDITIONS:
                problems.append(
                    f"golden[{index}].expect.{output}: unknown {', '.join(sorted(unknown))} "
                    f"(known: {', '.join(sorted(_CONDITIONS))})"
                )
    return problems


def to_request(item: Mapping[str, Any], *, identifier: str, deadline_s: float | None) -> InferRequest:
    """One golden entry as a request of one row."""
    return InferRequest(
        id=identifier,
        inputs={name: [_decoded(value)] for name, value in item["inputs"].items()},
        parameters=dict(item.get("parameters") or {}),
        deadline_s=deadline_s,
    )


async def run_golden(
    deployer: Deployer,
    app: str,
    golden: Sequence[Mapping[str, Any]],
    *,
    now: float,
    timeout_s: float,
    monotonic: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Run them one by one against an application; the reasons why it fails them, [] when it passes."""
    reasons = problems_in_golden(golden)
    if reasons:
        return reasons
    for index, item in enumerate(golden):
        label = str(item.get("name") or f"golden[{index}]")
        request = to_request(item, identifier=f"golden-{app}-{index}", deadline_s=now + timeout_s)
        started = monotonic()
        try:
            (result,) = await deployer.infer(app, [request], timeout_s=timeout_s)
        except HeadraceError as error:
            reasons.append(f"{label}: {error.message}")
            continue
        elapsed_ms = 1000 * (monotonic() - started)
        reasons += [f"{label}: {reason}" for reason in check_answer(item, result)]
        limit = item.get("max_ms")
        if limit is not None and elapsed_ms > float(limit):
            reasons.append(f"{label}: took {elapsed_ms:.0f} ms, {float(limit):g} allowed")
    return reasons


def check_answer(item: Mapping[str, Any], result: InferResult) -> list[str]:
    """Why an answer does not hold what its golden entry expects."""
    if result.error is not None:
        return [f"{result.error.code}: {result.error.message}"]
    outputs = result.outputs or {}
    reasons = []
    for name, wanted in (item.get("expect") or {}).items():
        if name not in outputs:
            reasons.append(f"no output {name!r} (there are: {', '.join(sorted(outputs)) or 'none'})")
            continue
        value = _plain(outputs[name][0])
        conditions = wanted if isinstance(wanted, Mapping) else {"equals": wanted}
        for condition, operand in conditions.items():
            reason = _check(condition, operand, value, conditions)
            if reason:
                reasons.append(f"{name} {reason}")
    return reasons


def _check(condition: str, operand: Any, value: Any, conditions: Mapping[str, Any]) -> str:
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "…"
    if condition == "equals":
        return "" if value == _plain(_decoded(operand)) else f"is {shown}, not {operand!r}"
    if condition == "contains":
        return "" if isinstance(value, str | list) and operand in value else f"is {shown}, without {operand!r}"
    if condition == "matches":
        return "" if re.search(str(operand), str(value)) else f"is {shown}, which does not match {operand!r}"
    if condition == "one_of":
        return "" if value in operand else f"is {shown}, none of {operand!r}"
    if condition == "close_to":
        tolerance = float(conditions.get("tolerance", DEFAULT_TOLERANCE))
        return "" if _close(value, operand, tolerance) else f"is {shown}, not within {tolerance:g} of {operand!r}"
    if condition in ("min", "max"):
        if not isinstance(value, int | float):
            return f"is {shown}, no number"
        within = value >= operand if condition == "min" else value <= operand
        return "" if within else f"is {shown}, {condition} is {operand!r}"
    if condition in ("length", "min_length"):
        size = len(value) if isinstance(value, str | list | dict) else -1
        within = size == operand if condition == "length" else size >= operand
        return "" if within else f"has length {size}, {condition} is {operand!r}"
    if condition == "not_empty":
        return "" if bool(value) == bool(operand) else f"is {shown}"
    return ""  # `tolerance` belongs to `close_to`


def _close(value: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_close(a, b, tolerance) for a, b in zip(value, wanted, strict=True))
        )
    return isinstance(value, int | float) and abs(value - wanted) <= tolerance


def _plain(value: Any) -> Any:
    """numpy values and bytes as JSON would show them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"$base64"}:
        try:
            return base64.b64decode(value["$base64"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise InvalidInput(f"golden: not base64: {error}") from None
    return value
