"""Mistakes that are found without running: cycles, unknown names, conditions and templates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec.graph import Known, Problem, check_workflow, dependencies
from pipelines.spec.models import WorkflowSpec


def _spec(*steps: dict[str, Any], **keys: Any) -> WorkflowSpec:
    return WorkflowSpec.model_validate({"name": "w", "steps": [{"type": "python_script", **s} for s in steps], **keys})


def _only(*steps: dict[str, Any], known: Known | None = None, **keys: Any) -> Problem:
    (problem,) = check_workflow(_spec(*steps, **keys), known=known)
    return problem


def test_dependencies_come_from_depends_on_templates_and_expressions() -> None:
    """In that order, each once."""
    spec = _spec(
        {"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d"},
        {"id": "e", "depends_on": ["a"], "input": "{{steps.b.output}} {{steps.a.output}}", "when": "steps.c.output > 1",
         "concurrency": "{{steps.d.output}}"},
    )  # fmt: skip
    assert dependencies(spec)["e"] == ("a", "b", "d", "c")
    assert check_workflow(spec) == []


def test_a_cycle_is_shown_with_its_way() -> None:
    """Also through templates and goto."""
    problem = _only(
        {"id": "a", "input": "{{steps.c.output}}"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]}
    )
    assert "a → c → b → a" in problem.message
    assert problem.path[:1] == ("steps",)
    back = _only({"id": "a"}, {"id": "b", "depends_on": ["a"], "on_error": {"goto": "a"}})
    assert "→" in back.message


def test_a_step_cannot_wait_for_itself() -> None:
    """The smallest cycle."""
    assert "a → a" in _only({"id": "a", "input": "{{steps.a.output}}"}).message


@pytest.mark.parametrize(
    ("step", "path", "text"),
    [
        ({"depends_on": ["preproces"]}, ("steps", 1, "depends_on", 0), "did you mean 'preprocess'?"),
        ({"input": {"x": "{{steps.preproces.output}}"}}, ("steps", 1, "input"), "did you mean 'preprocess'?"),
        ({"input": "{{steps.preprocess.ouput}}"}, ("steps", 1, "input"), "did you mean 'output'?"),
        ({"input": "{{steps.preprocess}}"}, ("steps", 1, "input"), "steps.preprocess.output"),
        ({"input": "{{inputs.nam}}"}, ("steps", 1, "input"), "did you mean 'name'?"),
        ({"input": "{{item}}"}, ("steps", 1, "input"), "foreach"),
        ({"input": "{{loop.index}}"}, ("steps", 1, "input"), "loop"),
        ({"input": "{{run.nr}}"}, ("steps", 1, "input"), "field of run"),
        ({"when": "steps.preproces.output > 1"}, ("steps", 1, "when"), "did you mean 'preprocess'?"),
        ({"when": "1 +"}, ("steps", 1, "when"), "CEL"),
        ({"input": "{{ x"}, ("steps", 1, "input"), "end of print"),
        ({"on_error": {"goto": "preproces"}}, ("steps", 1, "on_error", "goto"), "did you mean 'preprocess'?"),
        ({"foreach": "abc"}, ("steps", 1, "foreach", "items"), "not a list"),
        ({"foreach": "{{item}}"}, ("steps", 1, "foreach", "items"), "not known yet"),
        ({"timeout": {"attempt": 10, "step": 5}}, ("steps", 1, "timeout"), "longer"),
        ({"run_if": "any_success"}, ("steps", 1, "run_if"), "depends on none"),
        ({"loop": {"until": "loop.outptu == 1"}}, ("steps", 1, "loop", "until"), "field of loop"),
    ],
)
def test_each_mistake_has_a_place_and_a_hint(step: dict[str, Any], path: tuple[Any, ...], text: str) -> None:
    """The path of keys, and the closest name that exists."""
    problem = _only({"id": "preprocess"}, {"id": "b", **step}, inputs={"name": "string"})
    assert problem.path == path
    assert text in f"{problem.message} {problem.suggestion}"


def test_step_ids_are_unique() -> None:
    """Both would be `steps.a`."""
    assert "taken" in _only({"id": "a"}, {"id": "a"}).message


def test_what_surrounds_the_workflow_is_checked_when_it_is_known() -> None:
    """Models, workflows, queues, images."""
    known = Known(models=["text"], workflows=["inner"], queues=["gpu"], images=["img:1"], max_foreach_items=2)
    steps = (
        {"id": "a", "type": "model_inference", "model": "txt"},
        {"id": "b", "type": "workflow", "workflow": "iner"},
        {"id": "c", "queue": "gpus"},
        {"id": "d", "image": "img:2"},
        {"id": "e", "foreach": [1, 2, 3]},
        {"id": "f", "type": "model_inference", "model": "{{input.model}}"},
    )
    problems = check_workflow(_spec(*steps), known=known)
    assert [p.path for p in problems] == [
        ("steps", 0, "model"), ("steps", 1, "workflow"), ("steps", 2, "queue"), ("steps", 3, "image"),
        ("steps", 4, "foreach", "items"),
    ]  # fmt: skip
    assert check_workflow(_spec(*steps[:4])) == []


def test_the_runs_output_is_checked() -> None:
    """It may name every step, and nothing else."""
    assert _only({"id": "a"}, output={"x": "{{steps.b.output}}"}).path == ("output",)
    assert _only({"id": "a"}, output="{{item}}").path == ("output",)


@given(st.data())
def test_a_cycle_is_found_exactly_when_there_is_one(data: st.DataObject) -> None:
    """Against a plain topological sort."""
    count = data.draw(st.integers(1, 7))
    edges = {
        i: data.draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True), label=f"deps of {i}")
        for i in range(count)
    }
    problems = check_workflow(
        _spec(*({"id": f"s{i}", "depends_on": [f"s{d}" for d in edges[i]]} for i in range(count)))
    )
    left = dict(edges)
    while ready := [i for i, deps in left.items() if not any(d in left for d in deps)]:
        for i in ready:
            del left[i]
    assert bool(problems) == bool(left)
    for problem in problems:
        way = problem.message.split(": ")[1].split(" (")[0].split(" → ")
        assert way[0] == way[-1]
        for one, other in itertools.pairwise(way):
            assert int(other[1:]) in edges[int(one[1:])]
