"""The second line of defence: facts that must never be, put before the state directly, and results that come too late.

The engine never decides such facts, so no history shows whether the state would take them; a defect in the engine, or a
log that was written by a broken release, would. Each guard here has a mutant in tests/mutations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import NotFound
from pipelines.engine import InvalidTransition, events
from pipelines.engine.testing import Harness
from pipelines.executor.port import Attempt, Outcome

EACH = {"id": "each", "foreach": {"items": [1, 2]}}
ROUNDS = {"id": "rounds", "loop": {"max_iterations": 3}}


def begin(h: Harness, *steps: dict[str, Any]) -> str:
    """A run of these steps."""
    h.register(*steps)
    return h.submit()


def refuse(h: Harness, event: events.Event, match: str) -> None:
    """The state takes no such fact, and is as it was."""
    before = h.engine.dump()
    with pytest.raises(InvalidTransition, match=match):
        h.engine.replay([event])
    assert h.engine.dump() == before


def result_of(attempt: Attempt, fence: int) -> events.Event:
    """The fact that an attempt's step, item or round succeeded."""
    if attempt.item is not None:
        return events.ItemSucceeded(
            run_id=attempt.run_id, step_id=attempt.step_id, item=attempt.item, fence=fence, output=0, at=1.0
        )
    if attempt.step_id == "rounds":
        return events.IterationSucceeded(
            run_id=attempt.run_id, step_id=attempt.step_id, iteration=0, fence=fence, output=0, at=1.0
        )
    return events.StepSucceeded(run_id=attempt.run_id, step_id=attempt.step_id, fence=fence, output=0, at=1.0)


@pytest.mark.parametrize("step", [{"id": "a"}, EACH, ROUNDS], ids=["step", "item", "round"])
def test_a_result_with_another_fence_is_no_fact(h: Harness, step: dict[str, Any]) -> None:
    """Only the attempt in flight can have succeeded."""
    begin(h, step)
    attempt = h.started[0]
    with pytest.raises(InvalidTransition, match="met the attempt with fence"):
        h.engine.replay([result_of(attempt, attempt.fence + 100)])


@pytest.mark.parametrize("step", [{"id": "a"}, EACH, ROUNDS], ids=["step", "item", "round"])
def test_a_second_result_is_no_fact(h: Harness, step: dict[str, Any]) -> None:
    """What is committed is not committed again, under no fence."""
    begin(h, step, {"id": "after", "depends_on": [step["id"]]})
    attempt = h.started[0]
    h.succeed(attempt.step_id, 1, item=attempt.item)
    # Without a fence the table alone is left to refuse it; the round's number is checked under the newest fence.
    with pytest.raises(InvalidTransition):
        h.engine.replay([result_of(attempt, max(h.running) if step is ROUNDS else 0)])


def test_a_fence_that_does_not_grow_is_no_fact(h: Harness) -> None:
    """Every attempt of the shard has a higher fence than all before it."""
    run = begin(h, {"id": "a"}, {"id": "b"})
    again = events.AttemptStarted(run_id=run, step_id="a", attempt=2, fence=2, at=h.now)
    refuse(h, again, "fence 2 of step a is not above 2")


ENDS: list[Callable[[str], events.Event]] = [
    lambda run: events.RunCancelled(run_id=run, reason="", at=1.0),
    lambda run: events.RunFailed(run_id=run, error={}, at=1.0),
    lambda run: events.RunSucceeded(run_id=run, output=None, at=1.0),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("how", ["succeed", "fail", "cancel"])
def test_an_ended_run_meets_no_other_end(h: Harness, how: str, end: Callable[[str], events.Event]) -> None:
    """A run ends once."""
    run = begin(h, {"id": "a"})
    {"succeed": lambda: h.succeed("a"), "fail": lambda: h.fail("a"), "cancel": lambda: h.cancel(run)}[how]()
    refuse(h, end(run), f"run {run} is")


def test_a_run_with_open_steps_has_not_succeeded(h: Harness) -> None:
    """Success is of all steps."""
    run = begin(h, {"id": "a"})
    refuse(h, events.RunSucceeded(run_id=run, output=None, at=1.0), "1 steps that had not ended")


def test_an_open_run_does_not_leave_memory(h: Harness) -> None:
    """Only what has ended can be forgotten."""
    run = begin(h, {"id": "a"})
    refuse(h, events.RunEvicted(run_id=run), "cannot leave memory")


def test_a_run_is_submitted_or_restored_once(h: Harness) -> None:
    """A run id names one run."""
    run = begin(h, {"id": "a"})
    digest = h.engine.view(run)["digest"]
    refuse(h, events.RunSubmitted(run_id=run, workflow="w", digest=digest, input=None, at=1.0), "submitted twice")
    refuse(h, events.RunRestored(run_id=run, record=h.engine.record(run)), "in memory already")


def test_a_resume_keeps_only_what_has_ended(h: Harness) -> None:
    """A running run is not resumed, whoever says so."""
    run = begin(h, {"id": "a"})
    digest = h.engine.view(run)["digest"]
    resumed = events.RunResumed(run_id=run, digest=digest, kept=(), partial=(), at=1.0)
    refuse(h, resumed, "is RUNNING and met RunResumed")


def test_a_step_of_an_ended_run_takes_no_result(h: Harness) -> None:
    """The run ended while the attempt was on its way: the result is refused, and that is no error."""
    run = begin(h, {"id": "a"}, {"id": "b"})
    attempt = h.find("a")
    h.cancel(run)
    decision = h.end(attempt, Outcome(status="success", output=1))
    assert decision.refused
    assert not decision.events


def test_a_step_that_has_ended_takes_no_result(h: Harness) -> None:
    """A step's own timeout ended it while its attempt was on its way: the result is refused."""
    run = begin(h, {"id": "a", "timeout": {"step": 10}, "on_error": "continue"}, {"id": "b"})
    attempt = h.find("a")
    h.advance(11)
    assert h.steps(run)["a"] == "FAILED"
    decision = h.end(attempt, Outcome(status="success", output=1))
    assert decision.refused
    assert not decision.events


def test_a_nested_run_that_has_ended_is_not_cancelled_with_its_siblings(h: Harness) -> None:
    """Two nested runs end in the same moment, and the first one ends their step: the second stays as it ended."""
    h.register({"id": "x"}, name="inner", timeout=5)
    h.register({"id": "each", "type": "workflow", "workflow": "inner", "foreach": {"items": [1, 2]}})
    run = h.submit()
    first, second = [r for r in h.engine.run_ids() if r != run]
    h.advance(6)
    assert (h.state(first), h.state(second), h.state(run)) == ("FAILED", "FAILED", "FAILED")


def test_what_is_not_known_is_named(h: Harness) -> None:
    """A fact of a run, a step or a definition that was never recorded."""
    run = begin(h, {"id": "a"})
    for event in (
        events.RunCancelled(run_id="run-0-nobody", reason="", at=1.0),
        events.StepSkipped(run_id=run, step_id="nobody", reason="", at=1.0),
        events.RunSubmitted(run_id="run-0-x", workflow="w", digest="none", input=None, at=1.0),
    ):
        with pytest.raises(NotFound):
            h.engine.replay([event])
