"""`foreach`, `loop` and nested workflows."""

from __future__ import annotations

import pytest

from pipelines.engine import EngineLimits, events
from pipelines.engine.testing import Harness, error
from pipelines.executor.port import Outcome


def test_foreach_runs_once_per_item_and_keeps_the_order(h: Harness) -> None:
    """Results come in the order of the items, whatever order they end in."""
    h.register(
        {"id": "list"},
        {"id": "each", "foreach": "{{steps.list.output}}", "input": {"v": "{{item}}", "i": "{{index}}"}},
        {"id": "end", "input": "{{steps.each.output}}"},
    )
    run = h.submit()
    h.succeed("list", ["x", "y", "z"])
    assert h.in_flight() == ["each[0]", "each[1]", "each[2]"]
    assert h.find("each", 1).input == {"v": "y", "i": 1}
    for item in (2, 0, 1):
        h.succeed("each", f"r{item}", item=item)
    assert h.find("end").input == ["r0", "r1", "r2"]
    assert h.step(run, "each")["progress"] == {"total": 3, "done": 3, "failed": 0, "running": 0}


def test_foreach_without_input_gives_each_attempt_its_item(h: Harness) -> None:
    """Also for a list that stands in the file."""
    h.register({"id": "each", "foreach": [10, 20]})
    h.submit()
    assert [h.find("each", i).input for i in (0, 1)] == [10, 20]


def test_foreach_over_nothing_succeeds_at_once(h: Harness) -> None:
    """An empty list is an empty result."""
    h.register({"id": "each", "foreach": "{{input}}"}, {"id": "b", "depends_on": ["each"]})
    h.submit([])
    assert h.find("b").input == {"each": []}


def test_foreach_runs_no_more_than_max_parallel(h: Harness) -> None:
    """The next item starts when one ends."""
    h.register({"id": "each", "foreach": {"items": "{{input}}", "max_parallel": 2}})
    h.submit(list(range(5)))
    assert h.in_flight() == ["each[0]", "each[1]"]
    h.succeed("each", item=1)
    assert h.in_flight() == ["each[0]", "each[2]"]


def test_only_the_failed_item_is_retried(h: Harness) -> None:
    """Items have their own attempts."""
    h.register({"id": "each", "foreach": [1, 2], "retry": {"max_attempts": 2, "initial_interval": 1}})
    h.submit()
    h.succeed("each", "a", item=0)
    h.fail("each", item=1)
    h.advance(2)
    assert [(a.item, a.attempt) for a in h.started] == [(0, 1), (1, 1), (1, 2)]
    h.succeed("each", "b", item=1)
    assert h.commits() == [("run-0-1", "each", 0, -1), ("run-0-1", "each", 1, -1), ("run-0-1", "each", None, -1)]


def test_on_failure_fail_stops_the_others(h: Harness) -> None:
    """The first item that fails for good ends the step."""
    h.register({"id": "each", "foreach": {"items": [1, 2, 3], "max_parallel": 2}})
    run = h.submit()
    h.fail("each", error(message="bad item"), item=1)
    assert h.state(run) == "FAILED"
    assert len(h.cancelled) == 1
    assert "item 1 of 3: bad item" in h.step(run, "each")["error"]["message"]
    assert h.in_flight() == []


def test_on_failure_continue_puts_null_and_says_which(h: Harness) -> None:
    """The step succeeds; `steps.X.failed` lists the indexes."""
    h.register(
        {"id": "each", "foreach": {"items": [1, 2, 3], "on_failure": "continue"}},
        {"id": "end", "input": {"all": "{{steps.each.output}}", "bad": "{{steps.each.failed}}"}},
    )
    h.submit()
    h.fail("each", item=1)
    h.succeed("each", "a", item=0)
    h.succeed("each", "c", item=2)
    assert h.find("end").input == {"all": ["a", None, "c"], "bad": [1]}


def test_on_failure_threshold_fails_once_too_many_have(h: Harness) -> None:
    """A share of failures is borne, one more is not."""
    h.register({"id": "each", "foreach": {"items": [1, 2, 3, 4], "on_failure": {"threshold": 0.5}}})
    run = h.submit()
    h.fail("each", item=0)
    h.fail("each", item=1)
    assert h.state(run) == "RUNNING"
    h.fail("each", item=2)
    assert h.state(run) == "FAILED"
    assert h.step(run, "each")["error"]["code"] == "too_many_items_failed"


def test_a_list_that_is_none_or_too_long_fails_the_step() -> None:
    """Limits answer with a clear error, before anything starts."""
    h = Harness(limits=EngineLimits(max_foreach_items=3))
    h.register({"id": "each", "foreach": "{{input}}"})
    long, wrong = h.submit([1, 2, 3, 4]), h.submit({"a": 1})
    assert "limits.max_foreach_items is 3" in h.step(long, "each")["error"]["message"]
    assert "gave object, not a list" in h.step(wrong, "each")["error"]["message"]
    assert h.started == []


def test_an_item_whose_input_cannot_be_made_fails_alone(h: Harness) -> None:
    """Other items are not hurt."""
    h.register({"id": "each", "foreach": {"items": "{{input}}", "on_failure": "continue"}, "input": "{{item.x}}"})
    run = h.submit([{"x": 1}, {"y": 2}, {"x": 3}])
    h.succeed("each", 1, item=0)
    h.succeed("each", 3, item=2)
    assert h.output(run) == {"each": [1, None, 3]}


def test_ten_thousand_items_pass(h: Harness) -> None:
    """The design's size, with 64 at a time and a crash in the middle: every item commits once."""
    h.compare = False
    count = 10_000
    h.register({"id": "each", "foreach": {"items": "{{input}}", "max_parallel": 64}})
    engine = h.engine
    run = h.submit(list(range(count)))
    crash_at, ended = count // 2, 0
    while h.running:
        attempt = next(iter(h.running.values()))
        h.running.pop(attempt.fence)
        decision = h.engine.attempt_finished(
            run, "each", attempt.item, attempt.fence, Outcome(status="success", output=attempt.input * 2), now=h.now
        )
        ended += 1
        _take_quickly(h, decision)
        if ended == crash_at:
            h.crash()
    assert h.engine is not engine
    assert h.output(run) == {"each": [i * 2 for i in range(count)]}
    assert len(set(h.commits())) == len(h.commits()) == count + 1
    h.engine.check_invariants()


def _take_quickly(h: Harness, decision: object) -> None:
    """As `Harness.take`, without walking over all items after each of them."""
    check, h.engine.check_invariants = h.engine.check_invariants, lambda: None  # type: ignore[method-assign]
    h.take(decision)  # type: ignore[arg-type]
    h.engine.check_invariants = check  # type: ignore[method-assign]


def test_loop_carries_its_state_until_it_is_done(h: Harness) -> None:
    """Each round sees the output of the one before, and `until` ends it."""
    h.register(
        {
            "id": "improve",
            "loop": {"until": "loop.output.score > 0.8", "max_iterations": 5, "initial": {"text": "{{input.t}}"}},
            "input": {"draft": "{{loop.state.text}}", "n": "{{loop.index}}"},
        },
        {"id": "end", "input": "{{steps.improve.output.text}}"},
    )
    h.submit({"t": "v0"})
    assert h.find("improve").input == {"draft": "v0", "n": 0}
    h.succeed("improve", {"text": "v1", "score": 0.5})
    assert h.find("improve").input == {"draft": "v1", "n": 1}
    h.crash()
    assert h.find("improve").input == {"draft": "v1", "n": 1}
    h.succeed("improve", {"text": "v2", "score": 0.9})
    assert h.find("end").input == "v2"
    keys = {a.idempotency_key for a in h.started if a.step_id == "improve"}
    assert len(keys) == 2


def test_loop_without_until_runs_max_iterations(h: Harness) -> None:
    """A counted loop; without `input` a round is given the carried state."""
    h.register({"id": "a", "loop": {"max_iterations": 3, "initial": 0}})
    run = h.submit()
    for expected in range(3):
        assert h.find("a").input == expected
        h.succeed("a", expected + 1)
    assert h.output(run) == {"a": 3}


@pytest.mark.parametrize(("on_exhausted", "state"), [("fail", "FAILED"), ("continue", "SUCCESS")])
def test_loop_that_never_ends_is_ended(h: Harness, on_exhausted: str, state: str) -> None:
    """`on_exhausted` says what it means that `until` never held."""
    h.register({"id": "a", "loop": {"until": "false", "max_iterations": 2, "on_exhausted": on_exhausted}})
    run = h.submit()
    h.succeed("a")
    h.succeed("a")
    assert h.state(run) == state


def test_loop_retries_a_round_not_the_loop(h: Harness) -> None:
    """Each round has its own attempts; a wait between rounds holds no slot."""
    h.register({"id": "a", "loop": {"max_iterations": 2, "delay": 30}, "retry": 2})
    run = h.submit()
    h.fail("a")
    h.advance(2)
    h.succeed("a", 1)
    assert h.in_flight() == []
    h.advance(30)
    h.fail("a")
    h.advance(2)
    h.succeed("a", 2)
    assert h.output(run) == {"a": 2}
    assert [e.iteration for e in h.events(events.IterationSucceeded)] == [0, 1]


def _nested(h: Harness, **keys: object) -> None:
    h.register({"id": "x", "input": "{{input.v}}"}, name="inner", output="{{steps.x.output}}")
    h.register({"id": "sub", "type": "workflow", "workflow": "inner", "input": {"v": "{{input}}"}, **keys})


def test_a_nested_workflow_is_a_run_of_its_own(h: Harness) -> None:
    """It has its own id and a link to its parent, and its output is the step's."""
    _nested(h)
    run = h.submit(5)
    child = h.step(run, "sub")["child_run_id"]
    assert h.find("x").run_id == child
    assert h.find("x").input == 5
    assert h.engine.view(child)["parent"] == [run, "sub", None]
    h.succeed("x", 25)
    assert h.output(run) == {"sub": 25}
    assert h.ended == {child: "SUCCESS", run: "SUCCESS"}


def test_a_failing_child_fails_its_step_and_may_be_retried(h: Harness) -> None:
    """Each try is a new run."""
    _nested(h, retry={"max_attempts": 2, "initial_interval": 1})
    run = h.submit(5)
    h.fail("x", error(message="deep"))
    h.advance(2)
    h.fail("x", error(message="deep"))
    assert h.state(run) == "FAILED"
    assert h.step(run, "sub")["error"]["code"] == "child_failed"
    assert "deep" in h.step(run, "sub")["error"]["message"]
    assert len([r for r in h.ended if r != run]) == 2


def test_cancelling_the_parent_cancels_the_child(h: Harness) -> None:
    """And the child's attempts."""
    _nested(h)
    run = h.submit(5)
    child = h.find("x").run_id
    h.cancel(run)
    assert h.state(child) == h.state(run) == "CANCELLED"
    assert h.in_flight() == []


def test_cancelling_the_child_fails_the_parents_step(h: Harness) -> None:
    """The parent learns of it."""
    _nested(h)
    run = h.submit(5)
    h.cancel(h.find("x").run_id)
    assert h.state(run) == "FAILED"
    assert h.step(run, "sub")["error"]["code"] == "child_cancelled"


def test_a_crash_in_the_middle_of_a_child_changes_nothing(h: Harness) -> None:
    """The same child goes on."""
    _nested(h)
    run = h.submit(5)
    child = h.find("x").run_id
    h.crash()
    assert h.find("x").run_id == child
    h.succeed("x", 1)
    assert h.output(run) == {"sub": 1}


def test_nesting_has_a_depth_limit() -> None:
    """A workflow that calls itself ends with a clear error instead of filling the memory."""
    h = Harness(limits=EngineLimits(max_nesting=3))
    h.register({"id": "again", "type": "workflow", "workflow": "w"})
    run = h.submit()
    assert h.state(run) == "FAILED"
    assert len(h.ended) == 4
    assert "limits.max_nesting" in h.engine.view(run)["error"]["message"]


def test_foreach_over_nested_workflows(h: Harness) -> None:
    """Each item is a run; the outputs come back in order."""
    h.register({"id": "x"}, name="inner", output="{{steps.x.output}}")
    h.register(
        {"id": "sub", "type": "workflow", "workflow": "inner", "foreach": {"items": [1, 2, 3], "max_parallel": 2}}
    )
    run = h.submit()
    assert len(h.in_flight()) == 2
    while h.running:
        attempt = next(iter(h.running.values()))
        h.end(attempt, Outcome(status="success", output=attempt.input * 10))
    assert h.output(run) == {"sub": [10, 20, 30]}


def test_a_step_timeout_cancels_the_child(h: Harness) -> None:
    """A nested run cannot outlive its step."""
    _nested(h, timeout=60)
    run = h.submit(5)
    child = h.find("x").run_id
    h.advance(60)
    assert h.state(run) == "FAILED"
    assert h.state(child) == "CANCELLED"


def test_loop_over_a_nested_workflow(h: Harness) -> None:
    """Every round is a new run."""
    h.register({"id": "x"}, name="inner", output="{{steps.x.output}}")
    h.register({"id": "a", "type": "workflow", "workflow": "inner", "loop": {"max_iterations": 2, "initial": 1}})
    run = h.submit()
    h.succeed("x", 2)
    h.crash()
    h.succeed("x", 3)
    assert h.output(run) == {"a": 3}


def test_a_foreach_over_a_skipped_step_says_how_to_mean_an_empty_list(h: Harness) -> None:
    """And as it says, it works."""
    for items, state in (("{{steps.a.output}}", "FAILED"), ("{{ steps.a.output or [] }}", "SUCCESS")):
        h.register({"id": "a", "when": "false"}, {"id": "e", "foreach": items, "run_if": "all_done"})
        run = h.submit()
        assert h.state(run) == state
        if state == "FAILED":
            assert (
                'gave null, not a list; where a step may be skipped, write "{{ steps.a.output or [] }}"'
                in (h.step(run, "e")["error"]["message"])
            )
