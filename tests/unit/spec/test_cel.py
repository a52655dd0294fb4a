"""Conditions in CEL."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.spec.cel import compile_expression
from pipelines.spec.values import ExpressionError, ValueNeeded

CONTEXT: dict[str, Any] = {
    "steps": {
        "a": {"output": {"score": 0.7, "l": [1, 2], "t": None}, "state": "SUCCESS"},
        "b": {"output": {"$blob": "q", "spilled": True}},
        "off": {"output": None, "state": "SKIPPED"},
    },
    "input": {"n": 3, "q": "要退款"},
}


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("steps.a.output.score > 0.5", True),
        ("size(steps.a.output.l) == 2 && input.n < 3", False),
        ("has(steps.a.output.nope)", False),
        ("has(steps.off.output.x) && steps.off.output.x > 1", False),
        ("!has( steps.off.output.x.y ) && has(steps.a.output.score) && steps.off.output == null", True),
        ("has(input.n) ? input.n == 3 : 'has(input.q)' == ''", True),
        ("[{'k': 1}].all(v, has(v.k))", True),
        ("steps['a'].state == 'SUCCESS'", True),
        ("steps.a.output.l.exists(v, v == 2)", True),
        ("input.q.contains('退款')", True),
        ("steps.a.output.t == null", True),
        ("true", True),
    ],
)
def test_conditions_hold_or_not(source: str, holds: bool) -> None:
    """Over outputs, states and the input."""
    assert compile_expression(source).holds(CONTEXT) is holds


@pytest.mark.parametrize(
    "source",
    ["1 +", "foo > 1", "{{ steps.a.output }} > 1", "x" * 5000, "a.map(x, x)",
     "input.l.map(a, a).map(a, a).map(a, a).map(a, a).map(a, a) == []"],
)  # fmt: skip
def test_mistakes_are_found_when_compiling(source: str) -> None:
    """Syntax, unknown names, braces, size."""
    with pytest.raises(ExpressionError):
        compile_expression(source)


@pytest.mark.parametrize("source", ["steps.a.output.nope > 1", "input.n", "input.q > 3", "1 / 0 > 1"])
def test_what_cannot_be_judged_is_an_error(source: str) -> None:
    """Neither true nor false."""
    with pytest.raises(ExpressionError):
        compile_expression(source).holds(CONTEXT)


def test_references_are_read_out_and_not_out_of_texts() -> None:
    """A step named inside quotes is no dependency."""
    assert compile_expression("steps.a.output.x == 'steps.z.output' && steps['b'].state == \"x\"").steps == {"a", "b"}


def test_a_spilled_value_is_asked_for() -> None:
    """And used when it is there; the context is not changed."""
    expression = compile_expression("steps.b.output.k == 'K'")
    with pytest.raises(ValueNeeded):
        expression.holds(CONTEXT)
    assert expression.holds(CONTEXT, {"q": {"k": "K"}})
    assert CONTEXT["steps"]["b"]["output"] == {"$blob": "q", "spilled": True}


@pytest.mark.parametrize("source", ["steps.off.output.x > 1", "steps.off.output > 1"])
def test_what_is_null_is_named_with_its_reason(source: str) -> None:
    """A step that was skipped has no output: the expression's author forgot that it may be."""
    with pytest.raises(ExpressionError, match=r"steps.off.output is null \(step 'off' is SKIPPED\)"):
        compile_expression(source).holds(CONTEXT)
