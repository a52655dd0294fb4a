"""`when`, skipping, joins and error handlers."""

from __future__ import annotations

import itertools

import pytest

from pipelines.engine import events
from pipelines.engine.testing import Harness, error


def test_when_false_skips_the_step_and_what_needs_it(h: Harness) -> None:
    """Skipping spreads to dependents that want success."""
    h.register(
        {"id": "a"},
        {"id": "b", "when": "steps.a.output.score > 0.5"},
        {"id": "c", "depends_on": ["b"]},
    )
    run = h.submit()
    h.succeed("a", {"score": 0.4})
    assert h.steps(run) == {"a": "SUCCESS", "b": "SKIPPED", "c": "SKIPPED"}
    assert h.step(run, "b")["reason"] == "when"
    assert h.state(run) == "SUCCESS"


def test_when_true_runs_the_step(h: Harness) -> None:
    """A condition may read the run's input."""
    h.register({"id": "a", "when": "input.go"})
    run = h.submit({"go": True})
    assert h.in_flight() == ["a"]
    other = h.submit({"go": False})
    assert h.state(other) == "SUCCESS"
    assert h.state(run) == "RUNNING"


def test_a_condition_that_cannot_be_judged_fails_the_step(h: Harness) -> None:
    """A missing field is not silently false."""
    h.register({"id": "a"}, {"id": "b", "when": "steps.a.output.nope > 1"})
    run = h.submit()
    h.succeed("a", {})
    assert h.steps(run)["b"] == "FAILED"
    assert h.step(run, "b")["error"]["code"] == "expression_error"


def test_a_branch_is_chosen_and_joined(h: Harness) -> None:
    """Of two branches one is skipped; `any_success` joins them, and a skipped step's output is null."""
    h.register(
        {"id": "a"},
        {"id": "yes", "when": "steps.a.output == 'y'"},
        {"id": "no", "when": "steps.a.output != 'y'"},
        {"id": "end", "run_if": "any_success", "input": "{{ steps.yes.output or steps.no.output }}"},
    )
    run = h.submit()
    h.succeed("a", "n")
    assert h.in_flight() == ["no"]
    h.succeed("no", "was no")
    assert h.find("end").input == "was no"
    h.succeed("end", 1)
    assert h.state(run) == "SUCCESS"


_ENDS = ("success", "failed", "skipped", "continued")
_EXPECTED = {
    "all_success": lambda ends: all(e in ("success", "continued") for e in ends),
    "any_success": lambda ends: any(e in ("success", "continued") for e in ends),
    "all_done": lambda ends: True,
    "any_failed": lambda ends: any(e in ("failed", "continued") for e in ends),
}

_REACHES = {
    "all_success": lambda end: True,
    "any_success": lambda end: end in ("success", "continued"),
    "all_done": lambda end: True,
    "any_failed": lambda end: end in ("failed", "continued"),
}
"""Whether a dependency that ended so can be what the join was waiting for."""


@pytest.mark.parametrize("rule", sorted(_EXPECTED))
def test_a_join_fires_exactly_once_for_every_mix_and_order(rule: str) -> None:
    """Three dependencies, every way each can end, in every order: the join starts once, at the first moment at which
    its rule allows it and not before, or is skipped once."""
    for ends in itertools.product(_ENDS, repeat=3):
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            h = Harness(compare=False)
            steps = [{"id": "go"}]
            for i, end in enumerate(ends):
                steps.append(
                    {
                        "id": f"d{i}",
                        "depends_on": ["go"],
                        "when": "input.skip" if end == "skipped" else "true",
                        "on_error": "continue" if end == "continued" else "fail",
                    }
                )
            h.register(*steps, {"id": "join", "depends_on": ["d0", "d1", "d2"], "run_if": rule})
            run = h.submit({"skip": False})
            h.succeed("go")
            ended = [end for end in ends if end == "skipped"]
            for i in order:
                if ends[i] == "skipped":
                    continue
                h.succeed(f"d{i}") if ends[i] == "success" else h.fail(f"d{i}")
                ended.append(ends[i])
                started = any(a.step_id == "join" for a in h.started)
                enough = len(ended) == 3 or rule.startswith("any")
                allowed = enough and any(map(_REACHES[rule], ended)) and _EXPECTED[rule](ended)
                assert started == allowed, (rule, ends, order, ended)
            starts = [a for a in h.started if a.step_id == "join"]
            skips = [e for e in h.events(events.StepSkipped) if e.step_id == "join"]
            fires = _EXPECTED[rule](ends)
            assert (len(starts), len(skips)) == ((1, 0) if fires else (0, 1)), (rule, ends, order)
            if fires:
                h.succeed("join")
            assert h.engine.run_state(run).value == ("FAILED" if "failed" in ends else "SUCCESS"), (rule, ends, order)


def test_any_success_does_not_wait_for_the_slow_ones(h: Harness) -> None:
    """The first answer starts the join; the others change nothing any more."""
    h.register({"id": "fast"}, {"id": "slow"}, {"id": "join", "depends_on": ["fast", "slow"], "run_if": "any_success"})
    h.submit()
    h.succeed("fast", 1)
    assert h.find("join").input == {"fast": 1, "slow": None}
    h.succeed("slow", 2)
    assert sum(a.step_id == "join" for a in h.started) == 1


def test_any_failed_is_a_clean_up_after_a_failure(h: Harness) -> None:
    """It runs after a failure, and the run is still FAILED; without a failure it is skipped."""
    h.register({"id": "a"}, {"id": "undo", "run_if": "any_failed", "input": "{{steps.a.error.message}}"})
    run = h.submit()
    h.fail("a", error(message="no disk"))
    assert h.find("undo").input == "no disk"
    h.succeed("undo")
    assert h.state(run) == "FAILED"
    good = h.submit()
    h.succeed("a")
    assert h.steps(good)["undo"] == "SKIPPED"
    assert h.state(good) == "SUCCESS"


def test_on_error_continue_lets_dependents_see_null(h: Harness) -> None:
    """The step stays FAILED, the run does not fail."""
    h.register({"id": "a", "on_error": "continue"}, {"id": "b", "depends_on": ["a"]})
    run = h.submit()
    h.fail("a")
    assert h.find("b").input == {"a": None}
    h.succeed("b")
    assert h.steps(run)["a"] == "FAILED"
    assert h.state(run) == "SUCCESS"


def test_on_error_default_takes_the_place_of_the_output(h: Harness) -> None:
    """The step is SUCCESS with the default, and keeps the error for people to see."""
    h.register(
        {"id": "a", "on_error": {"default": {"caption": "?"}}}, {"id": "b", "input": "{{steps.a.output.caption}}"}
    )
    run = h.submit()
    h.fail("a", error(message="model gone"))
    assert h.find("b").input == "?"
    assert h.steps(run)["a"] == "SUCCESS"
    assert h.step(run, "a")["error"]["message"] == "model gone"


def test_on_error_goto_runs_the_handler_only_after_that_failure(h: Harness) -> None:
    """The handler sees the error; what needed the failed step is skipped; a join goes on."""
    steps = (
        {"id": "a", "on_error": {"goto": "rescue"}},
        {"id": "b", "depends_on": ["a"]},
        {"id": "rescue", "input": "{{steps.a.error.message}}"},
        {"id": "end", "depends_on": ["b", "rescue"], "run_if": "any_success"},
    )
    h.register(*steps)
    run = h.submit()
    h.fail("a", error(message="oh"))
    assert h.find("rescue").input == "oh"
    h.succeed("rescue", "saved")
    h.succeed("end")
    assert h.state(run) == "SUCCESS"
    assert h.steps(run) == {"a": "FAILED", "b": "SKIPPED", "rescue": "SUCCESS", "end": "SUCCESS"}
    good = h.submit()
    h.succeed("a")
    h.succeed("b")
    assert h.steps(good)["rescue"] == "SKIPPED"
    h.succeed("end")
    assert h.state(good) == "SUCCESS"


def test_one_handler_may_serve_several_steps(h: Harness) -> None:
    """It waits for all that lead to it, and runs if one of them failed."""
    h.register(
        {"id": "a", "on_error": {"goto": "rescue"}}, {"id": "b", "on_error": {"goto": "rescue"}}, {"id": "rescue"}
    )
    h.submit()
    h.fail("a")
    assert h.in_flight() == ["b"]
    h.succeed("b")
    assert h.in_flight() == ["rescue"]


def test_a_failing_handler_fails_the_run(h: Harness) -> None:
    """Nobody handles the handler."""
    h.register({"id": "a", "on_error": {"goto": "rescue"}}, {"id": "rescue"})
    run = h.submit()
    h.fail("a")
    h.fail("rescue")
    assert h.state(run) == "FAILED"


def test_a_delay_holds_no_slot(h: Harness) -> None:
    """A delayed step starts when its time has come, and says so while it waits; a crash does not restart the clock."""
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"], "delay": "5m"})
    run = h.submit()
    h.succeed("a")
    assert h.step(run, "b")["waiting"] == {"for": "delay", "until": h.now + 300}
    assert h.engine.gauges()["running"] == 0
    h.advance(200)
    h.crash()
    h.advance(99)
    assert h.in_flight() == []
    h.advance(1)
    assert h.in_flight() == ["b"]


def test_an_approval_waits_for_a_signal_without_a_worker(h: Harness) -> None:
    """The payload of the signal is the step's output."""
    h.register(
        {"id": "ask", "type": "approval", "message": "Publish {{input.what}}?"},
        {"id": "b", "input": "{{steps.ask.output.by}}"},
    )
    run = h.submit({"what": "it"})
    assert h.step(run, "ask")["waiting"] == {"for": "approval"}
    assert h.step(run, "ask")["message"] == "Publish it?"
    assert h.in_flight() == []
    h.crash()
    h.take(h.engine.signal(run, "ask", {"by": "ann"}, now=h.now))
    assert h.find("b").input == "ann"


def test_an_approval_that_is_rejected_fails_the_step(h: Harness) -> None:
    """The comment is in the error."""
    h.register({"id": "ask", "type": "approval"}, {"id": "b", "depends_on": ["ask"]})
    run = h.submit()
    h.take(h.engine.signal(run, "ask", {"approved": False, "comment": "not yet"}, now=h.now))
    assert h.state(run) == "FAILED"
    assert h.step(run, "ask")["error"]["code"] == "rejected"
    assert "not yet" in h.step(run, "ask")["error"]["message"]


@pytest.mark.parametrize(
    ("on_timeout", "state", "code"),
    [("fail", "FAILED", "approval_timeout"), ("reject", "FAILED", "rejected"), ("approve", "SUCCESS", None)],
)
def test_an_approval_that_nobody_answers_times_out(h: Harness, on_timeout: str, state: str, code: str | None) -> None:
    """`on_timeout` says what silence means."""
    h.register({"id": "ask", "type": "approval", "timeout": "1h", "on_timeout": on_timeout})
    run = h.submit()
    h.advance(1800)
    h.crash()
    h.advance(1799)
    assert h.state(run) == "RUNNING"
    h.advance(1)
    assert h.state(run) == state
    assert (h.step(run, "ask")["error"] or {}).get("code") == code
