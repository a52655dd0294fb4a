"""Resume, fix-and-resume, and what a crash in each window does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Conflict
from pipelines.engine import events
from pipelines.engine.testing import Harness
from pipelines.executor.port import Outcome

STEPS: list[dict[str, Any]] = [
    {"id": "a"},
    {"id": "b", "input": "{{steps.a.output}}"},
    {"id": "c", "input": "{{steps.b.output}}"},
]


def _failed_at_c(h: Harness) -> str:
    h.register(*STEPS)
    run = h.submit()
    h.succeed("a", 1)
    h.succeed("b", 2)
    h.fail("c")
    assert h.state(run) == "FAILED"
    return run


def test_resume_runs_only_what_had_not_succeeded(h: Harness) -> None:
    """Committed steps are not run again."""
    run = _failed_at_c(h)
    h.take(h.engine.resume(run, now=h.now))
    assert h.state(run) == "RUNNING"
    assert h.in_flight() == ["c"]
    h.succeed("c", 3)
    assert h.output(run) == {"c": 3}
    assert [a.step_id for a in h.started] == ["a", "b", "c", "c"]


def test_a_cancelled_run_may_be_resumed(h: Harness) -> None:
    """It goes on where it was."""
    h.register(*STEPS)
    run = h.submit()
    h.succeed("a", 1)
    h.cancel(run)
    h.reap()
    h.take(h.engine.resume(run, now=h.now))
    assert h.find("b").input == 1


def test_a_run_cancelled_before_its_first_step_starts_with_its_resume(h: Harness) -> None:
    """It has a start like any other: without one nobody could say how long it took."""
    h.register({"id": "a", "delay": 60})
    run = h.submit()
    h.cancel(run)
    h.take(h.engine.resume(run, now=h.now))
    h.advance(60)
    h.succeed("a")
    view = h.engine.view(run)
    assert (view["state"], view["started_at"]) == ("SUCCESS", h.now)


def test_only_failed_or_cancelled_runs_are_resumed(h: Harness) -> None:
    """A running or successful run is left alone."""
    h.register({"id": "a"})
    run = h.submit()
    with pytest.raises(Conflict, match="RUNNING"):
        h.engine.resume(run, now=h.now)
    h.succeed("a")
    with pytest.raises(Conflict, match="SUCCESS"):
        h.engine.resume(run, now=h.now)


def test_a_resumed_run_can_fail_and_be_resumed_again(h: Harness) -> None:
    """Each resume is counted."""
    run = _failed_at_c(h)
    for _ in range(2):
        h.take(h.engine.resume(run, now=h.now))
        h.fail("c")
    assert h.engine.view(run)["resumes"] == 2
    assert h.state(run) == "FAILED"


def test_a_late_result_of_before_the_resume_is_refused(h: Harness) -> None:
    """A worker that slept through cancel and resume cannot commit."""
    h.register({"id": "a"})
    run = h.submit()
    old = h.find("a")
    h.cancel(run)
    h.take(h.engine.resume(run, now=h.now))
    assert h.end(old, Outcome(status="success", output="old")).refused is not None
    h.succeed("a", "new")
    assert h.output(run) == {"a": "new"}


def test_foreach_keeps_its_finished_items(h: Harness) -> None:
    """Only the items that failed or had not run are run."""
    h.register({"id": "each", "foreach": {"items": [1, 2, 3], "max_parallel": 2}})
    run = h.submit()
    h.succeed("each", "one", item=0)
    h.fail("each", item=1)
    h.reap()
    assert h.engine.plan_resume(run).partial == ("each",)
    h.take(h.engine.resume(run, now=h.now))
    assert sorted(h.in_flight()) == ["each[1]", "each[2]"]
    h.succeed("each", "two", item=1)
    h.succeed("each", "three", item=2)
    assert h.output(run) == {"each": ["one", "two", "three"]}


def test_loop_goes_on_at_the_round_that_failed(h: Harness) -> None:
    """With the state that the last good round left."""
    h.register({"id": "a", "loop": {"max_iterations": 3, "initial": 0}})
    run = h.submit()
    h.succeed("a", 10)
    h.fail("a")
    h.take(h.engine.resume(run, now=h.now))
    assert h.find("a").input == 10
    h.crash()
    h.succeed("a", 20)
    h.succeed("a", 30)
    assert h.output(run) == {"a": 30}


def test_a_fixed_step_runs_under_the_new_definition(h: Harness) -> None:
    """Fix-and-resume: the answer first says what stays valid, then the run goes on."""
    run = _failed_at_c(h)
    fixed = h.register(*STEPS[:2], {"id": "c", "input": {"v": "{{steps.b.output}}"}})
    plan = h.engine.plan_resume(run, fixed)
    assert plan.kept == ("a", "b")
    assert set(plan.again) == {"c"}
    h.take(h.engine.resume(run, now=h.now, digest=fixed))
    assert h.find("c").input == {"v": 2}
    assert h.engine.view(run)["digest"] == fixed


def test_an_edited_committed_step_and_all_that_read_it_run_again(h: Harness) -> None:
    """A changed parameter invalidates the step; its readers follow; others stay."""
    steps = [
        {"id": "a"},
        {"id": "m", "type": "model_inference", "model": "m", "input": "{{steps.a.output}}", "parameters": {"t": 0}},
        {"id": "n", "input": "{{steps.m.output}}"},
        {"id": "o", "input": "{{steps.a.output}}"},
        {"id": "z", "depends_on": ["n", "o"]},
    ]
    h.register(*steps)
    run = h.submit()
    for step in ("a", "m", "n", "o"):
        h.succeed(step, step)
    h.fail("z")
    edited = h.register(steps[0], {**steps[1], "parameters": {"t": 1}}, *steps[2:])
    plan = h.engine.plan_resume(run, edited)
    assert plan.kept == ("a", "o")
    assert plan.again["m"] == "its definition changed: parameters"
    assert plan.again["n"] == "it reads m, which runs again"
    h.take(h.engine.resume(run, now=h.now, digest=edited))
    assert h.in_flight() == ["m"]


def test_how_a_step_is_scheduled_may_change_without_running_it_again(h: Harness) -> None:
    """Timeout, retry, resources, queue and priority are not part of what a step computes."""
    run = _failed_at_c(h)
    edited = h.register(
        {**STEPS[0], "timeout": 5, "retry": 3, "resources": {"cpus": 2}, "priority": "high"}, STEPS[1], STEPS[2]
    )
    assert h.engine.plan_resume(run, edited).kept == ("a", "b")


def test_a_template_that_gives_the_same_input_keeps_the_step(h: Harness) -> None:
    """The fingerprint is of the rendered input, not of its spelling."""
    run = _failed_at_c(h)
    edited = h.register(STEPS[0], {"id": "b", "input": "{{ steps.a.output + 0 }}"}, STEPS[2])
    assert h.engine.plan_resume(run, edited).kept == ("a", "b")


def test_an_edited_script_is_an_edited_step(h: Harness) -> None:
    """The registrar's script hashes tell which scripts changed."""
    h.take(h.engine.register({"name": "w", "steps": [{**s, "type": "python_script"} for s in STEPS]},
                             now=h.now, bundle="b1", scripts={"a": "1", "b": "1", "c": "1"}))  # fmt: skip
    run = h.submit()
    h.succeed("a", 1)
    h.succeed("b", 2)
    h.fail("c")
    decision = h.take(
        h.engine.register({"name": "w", "steps": [{**s, "type": "python_script"} for s in STEPS]},
                          now=h.now, bundle="b2", scripts={"a": "1", "b": "2", "c": "2"})
    )  # fmt: skip
    plan = h.engine.plan_resume(run, decision.digest)
    assert plan.kept == ("a",)
    assert plan.again["b"] == "its script changed"


def test_new_and_removed_steps_are_named(h: Harness) -> None:
    """An edited graph may grow and shrink."""
    run = _failed_at_c(h)
    edited = h.register(STEPS[0], {"id": "d", "depends_on": ["a"]})
    plan = h.engine.plan_resume(run, edited)
    assert (plan.kept, plan.removed, plan.again) == (("a",), ("b", "c"), {"d": "it is new"})
    h.take(h.engine.resume(run, now=h.now, digest=edited))
    h.succeed("d", 4)
    assert h.output(run) == {"d": 4}


def test_a_run_is_not_resumed_as_another_workflow(h: Harness) -> None:
    """The edited definition has the same name."""
    run = _failed_at_c(h)
    other = h.register({"id": "a"}, name="other")
    with pytest.raises(Conflict, match="other"):
        h.engine.plan_resume(run, other)


def test_skipped_branches_are_decided_again(h: Harness) -> None:
    """What was skipped because of the failure runs after the resume."""
    h.register(
        {"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "undo", "depends_on": ["a"], "run_if": "any_failed"}
    )
    run = h.submit()
    h.fail("a")
    h.succeed("undo")
    h.take(h.engine.resume(run, now=h.now))
    h.succeed("a", 1)
    assert h.in_flight() == ["b"]
    h.succeed("b", 2)
    assert h.state(run) == "SUCCESS"
    assert [a.step_id for a in h.started].count("undo") == 1


def test_an_archived_run_can_be_resumed(h: Harness) -> None:
    """From its record, after it has left memory."""
    run = _failed_at_c(h)
    record = h.engine.record(run)
    h.take(h.engine.evict(run))
    h.crash()
    h.take(h.engine.restore(record))
    h.take(h.engine.resume(run, now=h.now))
    assert h.find("c").input == 2


def test_the_runs_timeout_starts_anew_with_a_resume(h: Harness) -> None:
    """Otherwise a run that timed out could never be resumed."""
    h.register({"id": "a"}, timeout=60)
    run = h.submit()
    h.advance(60)
    assert h.state(run) == "FAILED"
    h.advance(1000)
    h.take(h.engine.resume(run, now=h.now))
    h.advance(59)
    assert h.state(run) == "RUNNING"
    h.advance(1)
    assert h.state(run) == "FAILED"


# --- the three windows that Ray's documentation of asynchronous inference lists ---------------------------------------


def test_crash_after_the_work_but_before_the_checkpoint(h: Harness) -> None:
    """The work was done and nothing recorded: it is done again under a higher fence and the same idempotency key."""
    h.register({"id": "a"})
    run = h.submit()
    lost = h.find("a")
    h.crash()
    again = h.find("a")
    assert again.fence > lost.fence
    assert again.idempotency_key == lost.idempotency_key
    assert again.attempt == 2
    h.succeed("a", 1)
    assert h.output(run) == {"a": 1}


def test_crash_after_the_checkpoint_but_before_the_acknowledgement(h: Harness) -> None:
    """The result is in the log: it is not computed again."""
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"]})
    h.submit()
    h.succeed("a", 1)
    h.crash()
    assert h.in_flight() == ["b"]
    assert [a.step_id for a in h.started].count("a") == 1


def test_crash_after_the_acknowledgement_was_lost(h: Harness) -> None:
    """The worker reports a second time to the new owner: refused, the committed result stays."""
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"]})
    run = h.submit()
    attempt = h.find("a")
    h.end(attempt, Outcome(status="success", output="first"))
    h.crash()
    assert h.end(attempt, Outcome(status="success", output="second")).refused is not None
    assert h.step(run, "a")["output"] == "first"
    assert len([e for e in h.events(events.StepSucceeded) if e.step_id == "a"]) == 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_edit_invalidates_exactly_the_edited_step_and_its_readers(data: st.DataObject) -> None:
    """Whatever the graph: readers of readers too, steps that only wait for an edited one not."""
    count = data.draw(st.integers(2, 7))
    steps: list[dict[str, Any]] = []
    reads: dict[str, set[str]] = {}
    for i in range(count):
        earlier = [f"s{j}" for j in range(i)]
        read = data.draw(st.sets(st.sampled_from(earlier), max_size=2)) if earlier else set()
        wait = data.draw(st.sets(st.sampled_from(earlier), max_size=2)) if earlier else set()
        reads[f"s{i}"] = read
        steps.append(
            {"id": f"s{i}", "input": {r: f"{{{{steps.{r}.output}}}}" for r in sorted(read)}, "depends_on": sorted(wait)}
        )
    h = Harness()
    h.register(*steps, {"id": "last", "depends_on": [s["id"] for s in steps]})
    run = h.submit()
    while h.in_flight() != ["last"]:
        attempt = next(iter(h.running.values()))
        h.end(attempt, Outcome(status="success", output=attempt.step_id))
    h.fail("last")
    edited = data.draw(st.sampled_from(sorted(reads)))
    changed = [{**s, "function": "other"} if s["id"] == edited else s for s in steps]
    digest = h.register(*changed, {"id": "last", "depends_on": [s["id"] for s in steps]})
    invalid = {edited}
    for step_id in reads:  # in the order of the graph
        if reads[step_id] & invalid:
            invalid.add(step_id)
    plan = h.engine.plan_resume(run, digest)
    assert set(plan.kept) == set(reads) - invalid
    before = len(h.started)
    h.take(h.engine.resume(run, now=h.now, digest=digest))
    while h.running:
        attempt = next(iter(h.running.values()))
        h.end(attempt, Outcome(status="success", output=attempt.step_id))
    assert h.state(run) == "SUCCESS"
    assert {a.step_id for a in h.started[before:]} == invalid | {"last"}
