"""Workflow definitions as types: what is accepted, what is not, and what the shorthands mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.spec.models import StepSpec, WorkflowSpec, parse_duration, parse_size


def _step(**keys: Any) -> StepSpec:
    return StepSpec.model_validate({"id": "a", "type": "python_script", **keys})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(300, 300), ("300", 300), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("1.5s", 1.5), ("2d", 172800)],
)
def test_durations_are_numbers_or_texts(text: Any, seconds: float) -> None:
    """Seconds, or numbers with units."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [(10, 10), ("2GiB", 2 << 30), ("512MB", 512_000_000), ("1k", 1000)])
def test_sizes_are_numbers_or_texts(text: Any, size: int) -> None:
    """Bytes, decimal or binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["5x", "m5", "", "five", "5 m 3"])
def test_a_duration_that_is_none_says_how_to_write_one(bad: str) -> None:
    """With an example."""
    with pytest.raises(ValueError, match="5m"):
        parse_duration(bad)


def test_shorthands_have_one_meaning() -> None:
    """What people write short is the long form."""
    assert _step(timeout="5m").timeout.attempt == 300
    assert _step(timeout={"attempt": 1, "step": "1m"}).timeout.step == 60
    retry = _step(retry=4).retry
    assert retry is not None
    assert retry.max_attempts == 4
    foreach = _step(foreach={"items": [1], "on_failure": {"threshold": 0.2}}).foreach
    assert foreach is not None
    assert (foreach.on_failure, foreach.threshold) == ("threshold", 0.2)
    concurrency = _step(concurrency="k").concurrency
    assert concurrency is not None
    assert (concurrency.key, concurrency.limit) == ("k", 1)
    assert _step(priority="high").priority == 0
    assert _step(depends_on="b").depends_on == ("b",)
    assert _step(resources={"memory": "2GiB"}).resources.memory == 2 << 30
    assert _step(on_error="continue").on_error.action == "continue"
    assert _step(on_error={"default": None}).on_error.action == "default"
    assert _step(on_error={"goto": "b"}).on_error.goto == "b"


@pytest.mark.parametrize(
    "keys",
    [
        {"id": "a-b"}, {"id": "1a"}, {"timeout": 0}, {"timeout": True}, {"retry": 0}, {"on_error": "goto"},
        {"on_error": {"goto": "b", "default": 1}}, {"unknown": 1}, {"model": "m"}, {"type": "teleport"},
        {"type": "model_inference"}, {"type": "workflow"}, {"type": "http_request"}, {"priority": "urgent"},
        {"foreach": [1], "loop": {"max_iterations": 2}}, {"type": "approval", "foreach": [1]},
        {"type": "approval", "retry": 2}, {"run_if": "sometimes"}, {"concurrency": {"key": "k", "limit": 0}},
        {"foreach": {"items": [1], "on_failure": "ignore"}}, {"delay": -1},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(keys: dict[str, Any]) -> None:
    """At load, not at run."""
    with pytest.raises(ValidationError):
        _step(**keys)


def test_the_definition_as_json_gives_the_same_definition() -> None:
    """Only what was written is written down, shorthands included."""
    raw = {
        "name": "w",
        "inputs": ["q"],
        "timeout": "1h",
        "output": "{{steps.a.output}}",
        "steps": [
            {"id": "a", "type": "python_script", "input": None, "retry": 2, "on_error": {"default": {"x": 1}}},
            {"id": "b", "type": "python_script", "foreach": "{{steps.a.output}}", "timeout": 5},
        ],
    }
    spec = WorkflowSpec.model_validate(raw)
    again = WorkflowSpec.model_validate(spec.model_dump(mode="json", exclude_unset=True))
    assert again == spec
    assert again.steps[0].has_input
    assert not again.steps[1].has_input
    assert again.has_output


def test_input_declarations_may_be_short() -> None:
    """A type's name, a mapping, or only names; a default makes an input optional."""
    spec = WorkflowSpec.model_validate(
        {
            "name": "w",
            "inputs": {"a": "string", "b": {"default": 1}, "c": None},
            "steps": [{"id": "x", "type": "approval"}],
        }
    )
    assert spec.inputs is not None
    assert [(n, s.type, s.required) for n, s in spec.inputs.items()] == [
        ("a", "string", True), ("b", "any", False), ("c", "any", True),
    ]  # fmt: skip
