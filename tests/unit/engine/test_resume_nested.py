"""Resuming runs whose steps are runs of their own, as they were or under edited definitions."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.engine.testing import Harness


def test_the_child_run_is_resumed_not_replaced(h: Harness) -> None:
    """Committed steps of a nested run are not run again either."""
    h.register({"id": "x"}, {"id": "y", "depends_on": ["x"]}, name="inner")
    h.register({"id": "sub", "type": "workflow", "workflow": "inner"})
    run = h.submit()
    child = h.find("x").run_id
    h.succeed("x", 1)
    h.fail("y")
    assert h.state(run) == "FAILED"
    h.take(h.engine.resume(run, now=h.now))
    assert h.find("y").run_id == child
    h.succeed("y", 2)
    assert h.output(run) == {"sub": {"y": 2}}
    assert [a.step_id for a in h.started] == ["x", "y", "y"]


def test_children_of_items_are_resumed_too(h: Harness) -> None:
    """Each item that failed goes on with its own nested run, also when the parent was cancelled."""
    h.register({"id": "x"}, {"id": "y", "depends_on": ["x"]}, name="inner", output="{{steps.y.output}}")
    h.register({"id": "sub", "type": "workflow", "workflow": "inner", "foreach": [1, 2]})
    run = h.submit()
    first, second = (a.run_id for a in h.running.values())
    h.succeed("x", run_id=first)
    h.succeed("x", run_id=second)
    h.succeed("y", "one", run_id=first)
    h.cancel(run)
    h.reap()
    h.take(h.engine.resume(run, now=h.now))
    assert [(a.step_id, a.run_id) for a in h.running.values()] == [("y", second)]
    h.succeed("y", "two", run_id=second)
    assert h.output(run) == {"sub": ["one", "two"]}
    assert [a.step_id for a in h.started].count("x") == 2


def _failed_in_inner(h: Harness) -> tuple[str, str]:
    """`sub` called inner (x, then y), in which y failed. Returns the run and the digest of its definition."""
    h.register({"id": "x"}, {"id": "y", "input": "{{steps.x.output}}"}, name="inner")
    digest = h.register({"id": "sub", "type": "workflow", "workflow": "inner"})
    run = h.submit()
    h.succeed("x", 1)
    h.fail("y")
    return run, digest


@pytest.mark.parametrize("named", [True, False])
def test_a_nested_run_goes_on_under_its_edited_definition(h: Harness, named: bool) -> None:
    """What stays valid of it is not run again, whether or not a definition was named for its parent."""
    run, digest = _failed_in_inner(h)
    child = h.started[-1].run_id
    h.register({"id": "x"}, {"id": "y", "input": "{{steps.x.output}}", "function": "mended"}, name="inner")
    h.take(h.engine.resume(run, now=h.now, digest=digest if named else None))
    again = h.find("y")
    assert (again.run_id, again.function, again.input) == (child, "mended", 1)
    h.succeed("y", 2)
    assert h.output(run) == {"sub": {"y": 2}}
    assert [a.step_id for a in h.started] == ["x", "y", "y"]


def test_the_plan_says_what_stays_of_nested_runs(h: Harness) -> None:
    """By the step that called them, each with its own reasons."""
    run, digest = _failed_in_inner(h)
    h.register({"id": "x", "function": "other"}, {"id": "y", "input": "{{steps.x.output}}"}, name="inner")
    plain, named = h.engine.plan_resume(run), h.engine.plan_resume(run, digest)
    assert plain.children["sub"].again["x"] == "its definition changed: function"
    assert named.to_dict()["children"]["sub"]["again"]["x"] == "its definition changed: function"
    assert named.again["sub"].startswith("it failed")


def test_a_definition_named_for_the_parent_is_named_for_its_nested_runs(h: Harness) -> None:
    """An edit two levels down counts there when a definition was named, and not in a plain resume."""
    h.register({"id": "x"}, name="inner")
    h.register({"id": "call", "type": "workflow", "workflow": "inner"}, {"id": "y", "depends_on": ["call"]},
               name="middle")  # fmt: skip
    digest = h.register({"id": "sub", "type": "workflow", "workflow": "middle"})
    runs = [h.submit(), h.submit()]
    for _ in runs:
        h.succeed("x", 1, run_id=next(a.run_id for a in h.running.values() if a.step_id == "x"))
    for _ in runs:
        h.fail("y", run_id=next(a.run_id for a in h.running.values() if a.step_id == "y"))
    h.register({"id": "x", "function": "edited"}, name="inner")
    h.take(h.engine.resume(runs[0], now=h.now))
    assert h.in_flight() == ["y"]
    h.succeed("y")
    h.take(h.engine.resume(runs[1], now=h.now, digest=digest))
    assert h.in_flight() == ["x"]
    assert h.find("x").function == "edited"


def test_a_nested_run_with_another_input_is_a_new_one(h: Harness) -> None:
    """Its committed steps were made from the old input."""
    h.register({"id": "x"}, {"id": "y", "depends_on": ["x"]}, name="inner")
    h.register({"id": "sub", "type": "workflow", "workflow": "inner", "input": {"n": 1}})
    run = h.submit()
    old = h.find("x").run_id
    h.succeed("x")
    h.fail("y")
    edited = h.register({"id": "sub", "type": "workflow", "workflow": "inner", "input": {"n": 2}})
    h.take(h.engine.resume(run, now=h.now, digest=edited))
    new = h.find("x")
    assert new.run_id != old
    assert new.input == {"n": 2}


def test_a_nested_run_goes_on_although_the_engine_died_after_the_resume(h: Harness) -> None:
    """Its step may start long after the resume was recorded."""
    sub = {"id": "sub", "type": "workflow", "workflow": "inner", "depends_on": ["a"], "input": {}}
    h.register({"id": "x"}, {"id": "y", "depends_on": ["x"]}, name="inner")
    h.register({"id": "a"}, sub)
    run = h.submit()
    h.succeed("a")
    child = h.find("x").run_id
    h.succeed("x")
    h.fail("y")
    edited = h.register({"id": "a", "function": "other"}, sub)
    h.take(h.engine.resume(run, now=h.now, digest=edited))
    h.crash()
    h.succeed("a")
    assert (h.in_flight(), h.find("y").run_id) == (["y"], child)


def _failed_after_sub(h: Harness, **more: Any) -> tuple[str, str]:
    """inner (x) was called by sub and succeeded, read by `after`; `last` failed. Returns the run and its digest."""
    h.register({"id": "x"}, name="inner", output="{{steps.x.output}}")
    digest = h.register(
        {"id": "free"},
        {"id": "sub", "type": "workflow", "workflow": "inner", **more},
        {"id": "after", "input": "{{steps.sub.output}}"},
        {"id": "last", "depends_on": ["free", "after"]},
    )
    run = h.submit()
    h.succeed("free", 0)
    while "x" in h.in_flight():
        h.succeed("x", 1)
    h.succeed("after", 2)
    h.fail("last")
    assert h.state(run) == "FAILED"
    return run, digest


@pytest.mark.parametrize("more", [{}, {"foreach": [1, 2]}, {"loop": {"max_iterations": 2}}])
def test_an_edit_of_a_nested_workflow_invalidates_the_step_that_called_it(h: Harness, more: dict[str, Any]) -> None:
    """Its committed result and its readers' are made again where a definition is named; other steps stay."""
    run, digest = _failed_after_sub(h, **more)
    assert h.engine.plan_resume(run, digest).kept == ("free", "sub", "after")
    h.register({"id": "x", "function": "other"}, name="inner", output="{{steps.x.output}}")
    h.crash()
    plan = h.engine.plan_resume(run, digest)
    assert plan.kept == ("free",)
    assert plan.partial == ()
    assert plan.again["sub"] == "its nested workflow changed: inner"
    assert plan.again["after"] == "it reads sub, which runs again"
    h.take(h.engine.resume(run, now=h.now, digest=digest))
    assert set(h.in_flight()) == {"x"}
    while "x" in h.in_flight():
        h.succeed("x", 10)
    assert h.find("after").input == ([10, 10] if "foreach" in more else 10)
    h.succeed("after", 20)
    h.crash()
    h.fail("last")
    assert h.engine.plan_resume(run, digest).kept == ("free", "sub", "after")


def test_a_plain_resume_keeps_the_results_of_an_edited_nested_workflow(h: Harness) -> None:
    """Without a definition named, nothing that was committed is run again."""
    run, _ = _failed_after_sub(h)
    h.register({"id": "x", "function": "other"}, name="inner", output="{{steps.x.output}}")
    assert h.engine.plan_resume(run).kept == ("free", "sub", "after")
    h.take(h.engine.resume(run, now=h.now))
    assert h.in_flight() == ["last"]


def test_an_edit_deeper_down_counts_too(h: Harness) -> None:
    """What a nested workflow calls belongs to what it does."""
    h.register({"id": "x"}, name="inner")
    h.register({"id": "mid", "type": "workflow", "workflow": "inner"}, name="middle")
    digest = h.register({"id": "sub", "type": "workflow", "workflow": "middle"}, {"id": "z", "depends_on": ["sub"]})
    run = h.submit()
    h.succeed("x", 1)
    h.fail("z")
    assert h.engine.plan_resume(run, digest).kept == ("sub",)
    h.register({"id": "x", "function": "other"}, name="inner")
    assert h.engine.plan_resume(run, digest).again["sub"] == "its nested workflow changed: middle"


def test_an_edit_between_two_tries_counts_from_the_try_that_succeeded(h: Harness) -> None:
    """A resumed parent whose nested run was replaced by one of the new definition has a valid result."""
    h.register({"id": "x"}, name="inner")
    digest = h.register({"id": "sub", "type": "workflow", "workflow": "inner"}, {"id": "z", "depends_on": ["sub"]})
    run = h.submit()
    h.fail("x")
    h.register({"id": "x", "function": "other"}, name="inner")
    h.take(h.engine.resume(run, now=h.now))
    h.succeed("x", 1)
    h.fail("z")
    assert h.engine.plan_resume(run, digest).kept == ("sub",)
