"""Which models a run will call first, as far as that is certain when it begins."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.engine.plan import compile_plan


def first_models(*steps: dict[str, Any]) -> tuple[str, ...]:
    defaults = {"script": {"type": "python_script"}, "call": {"type": "model_inference"}}
    written = [
        {**defaults.get(str(step.get("kind")), {}), **{key: value for key, value in step.items() if key != "kind"}}
        for step in steps
    ]
    return compile_plan({"name": "w", "steps": written}, digest="d").first_models


def script(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "script", "id": name, **more}


def call(name: str, model: str, **more: Any) -> dict[str, Any]:
    return {"kind": "call", "id": name, "model": model, **more}


def test_the_models_behind_scripts_are_known_and_those_behind_models_are_not() -> None:
    """Each is named once, in the order of the file, whatever order the steps run in."""
    steps = (
        call("c", "second", depends_on=["b"]),
        call("b", "first", input="{{steps.a.output}}"),
        script("a"),
        call("d", "beside"),
        call("e", "first", depends_on=["a"]),
    )
    assert first_models(*steps) == ("first", "beside")


@pytest.mark.parametrize(
    "uncertain",
    [
        {"when": "input.x > 1"},
        {"delay": 60},
        {"run_if": "any_failed"},
        {"run_if": "all_done"},
        {"model": "{{input.model}}"},
    ],
)
def test_what_may_not_come_or_not_soon_is_not_named(uncertain: dict[str, Any]) -> None:
    """A condition, a wait, and a model that only the input names."""
    assert first_models(script("a"), {**call("b", "m", depends_on=["a"]), **uncertain}) == ()
    if "model" not in uncertain:
        assert first_models(script("z"), {**script("a"), "depends_on": ["z"], **uncertain},
                            call("b", "m", depends_on=["a"])) == ()  # fmt: skip


def test_nobody_knows_when_an_approval_comes_nor_whether_a_goto_does() -> None:
    """Behind either, a warm model might wait for nothing."""
    assert first_models({"id": "a", "type": "approval", "message": "ok?"}, call("b", "m", depends_on=["a"])) == ()
    assert first_models(script("a", on_error={"goto": "b"}), call("b", "m")) == ()
