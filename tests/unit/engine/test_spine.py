"""Linear and parallel steps, retries, timeouts, cancel: what every workflow stands on."""

from __future__ import annotations

import pytest

from cluster.errors import Conflict, InvalidConfig, InvalidInput, NotFound, Overloaded
from pipelines.engine import EngineLimits, events
from pipelines.engine.testing import Harness, error
from pipelines.executor.port import Outcome


def test_steps_run_in_the_order_that_references_imply(h: Harness) -> None:
    """A template that names a step makes that step a dependency."""
    h.register({"id": "b", "input": "{{steps.a.output.x}}"}, {"id": "a"})
    run = h.submit({"q": 1})
    assert h.state(run) == "RUNNING"
    assert h.in_flight() == ["a"]
    assert h.find("a").input == {"q": 1}
    h.succeed("a", {"x": [1, 2]})
    assert h.find("b").input == [1, 2]
    h.succeed("b", "done")
    assert h.state(run) == "SUCCESS"
    assert h.output(run) == {"b": "done"}
    assert h.ended == {run: "SUCCESS"}


def test_independent_steps_run_side_by_side_and_a_join_gets_all_outputs(h: Harness) -> None:
    """Without `input` a step is given its dependencies' outputs by id."""
    h.register({"id": "a"}, {"id": "b"}, {"id": "c", "depends_on": ["a", "b"]})
    h.submit()
    assert h.in_flight() == ["a", "b"]
    h.succeed("b", 2)
    assert h.in_flight() == ["a"]
    h.succeed("a", 1)
    assert h.find("c").input == {"a": 1, "b": 2}


def test_the_designs_example_runs(h: Harness) -> None:
    """The image workflow of the design page goes from preprocess to postprocess."""
    h.register(
        {"id": "preprocess", "image": "dify/preprocess:1.0", "timeout": 300},
        {
            "id": "generate_caption",
            "type": "model_inference",
            "model": "text_generation",
            "input": "{{steps.preprocess.output}}",
        },
        {"id": "postprocess", "depends_on": ["generate_caption"]},
        name="image_processing",
    )
    run = h.submit({"photo": "x"}, workflow="image_processing")
    assert (h.find("preprocess").image, h.find("preprocess").timeout_s) == ("dify/preprocess:1.0", 300)
    h.succeed("preprocess", "small")
    caption = h.find("generate_caption")
    assert (caption.model, caption.input, h.merge_keys[caption.fence]) == (
        "text_generation", "small", "model:text_generation",
    )  # fmt: skip
    h.succeed("generate_caption", "a cat")
    h.succeed("postprocess", "A cat.")
    assert h.output(run) == {"postprocess": "A cat."}


def test_a_failure_is_retried_after_a_growing_wait_and_then_final(h: Harness) -> None:
    """`retry` waits initial_interval * backoff**n and gives up after max_attempts."""
    h.register({"id": "a", "retry": {"max_attempts": 3, "initial_interval": 2, "backoff": 3, "jitter": 0}})
    run = h.submit()
    h.fail("a")
    assert h.in_flight() == []
    assert h.step(run, "a")["waiting"] == {"for": "retry", "until": h.now + 2}
    h.advance(1.9)
    assert h.in_flight() == []
    h.advance(0.1)
    h.fail("a")
    assert h.engine.next_timer() == h.now + 6
    h.advance(6)
    assert h.find("a").attempt == 3
    h.fail("a", error(message="for good"))
    assert h.state(run) == "FAILED"
    assert h.engine.view(run)["error"]["message"] == "step 'a' failed: for good"


def test_all_attempts_of_a_step_share_one_idempotency_key_and_have_growing_fences(h: Harness) -> None:
    """A script can tell that it is asked for the same thing again, and that an older attempt is stale."""
    h.register({"id": "a", "retry": 3})
    h.submit()
    h.fail("a")
    h.advance(5)
    first, second = h.started
    assert first.idempotency_key == second.idempotency_key
    assert second.fence > first.fence


def test_jitter_is_drawn_once_and_recorded(h: Harness) -> None:
    """The wait is spread by ±jitter and the drawn time stands in the event, so replay needs no luck."""
    h.jitter = 1.0
    h.register({"id": "a", "retry": {"max_attempts": 2, "initial_interval": 10, "jitter": 0.2}})
    h.submit()
    h.fail("a")
    (failed,) = h.events(events.AttemptFailed)
    assert failed.retry_at == pytest.approx(h.now + 12)


@pytest.mark.parametrize("code", ["invalid_input", "script_not_found", "custom"])
def test_failures_that_cannot_pass_are_not_retried(h: Harness, code: str) -> None:
    """Bad input, and codes named in `non_retryable`, fail at once."""
    h.register({"id": "a", "retry": {"max_attempts": 5, "non_retryable": ["custom"]}})
    run = h.submit()
    h.fail("a", error(code))
    assert h.state(run) == "FAILED"


def test_non_retryable_may_name_an_exception_class(h: Harness) -> None:
    """The script's exception class is as good as an error code."""
    h.register({"id": "a", "retry": {"max_attempts": 5, "non_retryable": ["ValueError"]}})
    run = h.submit()
    h.fail("a", error(type="ValueError"))
    assert h.state(run) == "FAILED"


def test_a_dead_worker_spends_no_retry(h: Harness) -> None:
    """A step with a single attempt survives the loss of its worker, but not for ever."""
    h.register({"id": "a"})
    run = h.submit()
    for _ in range(3):
        h.fail("a", error("worker_died"))
        h.advance(30)
    h.fail("a", error("worker_died"))
    assert h.state(run) == "FAILED"


def test_an_overloaded_model_is_asked_again_no_sooner_than_it_said(h: Harness) -> None:
    """Retry-After is the least that is waited, and backpressure spends no retry."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.submit()
    h.fail("a", {**error("overloaded"), "retry_after_s": 40})
    assert h.engine.next_timer() == h.now + 40


def test_impossible_resources_cost_retries(h: Harness) -> None:
    """A step that fits on no node fails with its last attempt instead of being tried again for minutes."""
    h.register({"id": "a", "retry": 2, "resources": {"cpus": 1000}})
    run = h.submit()
    h.fail("a", error("resources_impossible"))
    h.advance(30)
    h.fail("a", error("resources_impossible"))
    assert h.state(run) == "FAILED"


def test_a_late_result_of_an_older_attempt_is_refused(h: Harness) -> None:
    """Only the attempt with the newest fence may commit."""
    h.register({"id": "a", "timeout": 10, "retry": 2})
    run = h.submit()
    old = h.find("a")
    h.advance(10 + h.limits.attempt_grace_s)
    assert old.fence in h.cancelled
    h.advance(5)
    new = h.find("a")
    late = h.end(old, Outcome(status="success", output="late"))
    assert late.refused is not None
    assert late.events == []
    h.end(new, Outcome(status="success", output="new"))
    assert h.output(run) == {"a": "new"}


def test_a_result_is_taken_once(h: Harness) -> None:
    """The second report of the same attempt changes nothing."""
    h.register({"id": "a"})
    run = h.submit()
    attempt = h.find("a")
    h.end(attempt, Outcome(status="success", output=1))
    again = h.end(attempt, Outcome(status="success", output=2))
    assert again.refused is not None
    assert h.output(run) == {"a": 1}


def test_the_steps_timeout_bounds_all_its_retries(h: Harness) -> None:
    """`timeout: {step: …}` ends the step although retries are left."""
    h.register({"id": "a", "timeout": {"step": 30}, "retry": {"max_attempts": 100, "initial_interval": 20}})
    run = h.submit()
    h.fail("a")
    h.advance(29)
    assert h.in_flight() == ["a"]
    h.advance(1)
    assert h.state(run) == "FAILED"
    assert h.engine.view(run)["error"]["code"] == "step_timeout"
    assert len(h.cancelled) == 1


def test_the_runs_timeout_ends_everything(h: Harness) -> None:
    """After `timeout` of the workflow its running steps are cancelled and the run is FAILED."""
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"]}, timeout="1m")
    run = h.submit()
    h.advance(60)
    assert h.state(run) == "FAILED"
    assert h.engine.view(run)["error"]["code"] == "run_timeout"
    assert h.steps(run) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert h.in_flight() == []


def test_nothing_starts_after_a_cancel(h: Harness) -> None:
    """Cancel is final at once: attempts are told to stop, waiting steps never start, late results are refused."""
    h.register({"id": "a"}, {"id": "b", "retry": 3}, {"id": "c", "depends_on": ["a"]})
    run = h.submit()
    h.fail("b")
    attempt = h.find("a")
    h.cancel(run)
    assert h.state(run) == "CANCELLED"
    assert set(h.steps(run).values()) == {"CANCELLED"}
    assert attempt.fence in h.cancelled
    count = len(h.started)
    assert h.end(attempt, Outcome(status="success", output=1)).refused is not None
    h.advance(1000)
    assert len(h.started) == count
    assert h.cancel(run).refused is not None


def test_a_cancelled_attempt_holds_its_slot_until_it_has_stopped() -> None:
    """A worker that is still busy with a cancelled run is not counted as free."""
    h = Harness(limits=EngineLimits(max_parallel_steps=1))
    h.register({"id": "a"})
    first, second = h.submit(), h.submit()
    h.cancel(first)
    assert h.in_flight() == []
    h.reap()
    assert h.find("a").run_id == second


def test_a_run_is_failed_only_when_nothing_more_can_run(h: Harness) -> None:
    """Branches that do not depend on the failed step go on."""
    h.register({"id": "a"}, {"id": "b"}, {"id": "c", "depends_on": ["a"]}, {"id": "d", "depends_on": ["b"]})
    run = h.submit()
    h.fail("a")
    assert h.state(run) == "RUNNING"
    h.succeed("b")
    h.succeed("d")
    assert h.state(run) == "FAILED"
    assert h.steps(run) == {"a": "FAILED", "b": "SUCCESS", "c": "SKIPPED", "d": "SUCCESS"}


def test_fail_fast_ends_the_run_at_the_first_failure(h: Harness) -> None:
    """With `fail_fast` other branches are cancelled."""
    h.register({"id": "a"}, {"id": "b"}, fail_fast=True)
    run = h.submit()
    h.fail("a")
    assert h.state(run) == "FAILED"
    assert h.steps(run) == {"a": "FAILED", "b": "CANCELLED"}


def test_a_step_whose_template_fails_is_failed_with_a_clear_error(h: Harness) -> None:
    """A field that an output does not have names itself, and is not retried."""
    h.register({"id": "a"}, {"id": "b", "input": "{{steps.a.output.titel}}", "retry": 5})
    run = h.submit()
    h.succeed("a", {"title": "x"})
    assert h.steps(run)["b"] == "FAILED"
    assert "has no field 'titel' (it has: title)" in h.step(run, "b")["error"]["message"]


def test_the_output_template_makes_the_runs_output(h: Harness) -> None:
    """`output` may name any step."""
    h.register({"id": "a"}, {"id": "b"}, output={"sum": "{{steps.a.output + steps.b.output}}", "id": "{{run.id}}"})
    run = h.submit()
    h.succeed("a", 1)
    h.succeed("b", 2)
    assert h.output(run) == {"sum": 3, "id": run}


def test_an_output_template_that_fails_fails_the_run(h: Harness) -> None:
    """A run whose output cannot be made is FAILED, not stuck."""
    h.register({"id": "a"}, output="{{steps.a.output.nope}}")
    run = h.submit()
    h.succeed("a", {})
    assert h.state(run) == "FAILED"


def test_inputs_are_checked_and_defaults_filled_in(h: Harness) -> None:
    """A submit that does not fit the declared inputs is refused before anything is recorded."""
    h.register({"id": "a"}, inputs={"question": "string", "count": {"type": "integer", "default": 3}})
    before = len(h.log)
    for bad in ({}, {"question": 1}, {"question": "x", "cuont": 1}, [1], {"question": "x", "count": True}):
        with pytest.raises(InvalidInput):
            h.submit(bad)
    assert len(h.log) == before
    h.submit({"question": "x"})
    assert h.find("a").input == {"question": "x", "count": 3}


def test_unknown_names_and_repeated_ids_are_refused(h: Harness) -> None:
    """Errors come before events."""
    h.register({"id": "a"})
    with pytest.raises(NotFound, match="known: w"):
        h.submit(workflow="nope")
    run = h.submit()
    with pytest.raises(Conflict):
        h.submit(run_id=run)
    with pytest.raises(NotFound):
        h.cancel("run-0-nope")


def test_too_many_open_runs_are_refused_with_a_time_to_come_back() -> None:
    """The engine protects its memory."""
    h = Harness(limits=EngineLimits(max_open_runs=1))
    h.register({"id": "a"})
    h.submit()
    with pytest.raises(Overloaded) as caught:
        h.submit()
    assert caught.value.retry_after_s is not None


def test_a_cycle_is_refused_at_registration_with_its_path(h: Harness) -> None:
    """No run of a workflow whose steps wait for each other can exist."""
    with pytest.raises(InvalidConfig, match=r"a → b → a"):
        h.register({"id": "a", "depends_on": ["b"]}, {"id": "b", "depends_on": ["a"]})


def test_the_seed_reaches_attempts(h: Harness) -> None:
    """A step's own seed wins over the run's."""
    h.register({"id": "a"}, {"id": "b", "seed": 7})
    h.submit(seed=42)
    assert (h.find("a").seed, h.find("b").seed) == (42, 7)


def test_a_finished_run_leaves_memory_and_comes_back_the_same(h: Harness) -> None:
    """`record`, `evict`, `restore` lose nothing."""
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"]})
    run = h.submit({"x": 1})
    h.succeed("a", [1])
    with pytest.raises(Conflict):
        h.engine.evict(run)
    h.fail("b")
    record, view = h.engine.record(run), h.engine.view(run)
    h.take(h.engine.evict(run))
    assert run not in h.engine
    assert h.engine.view_of_record(record) == view
    h.take(h.engine.restore(record))
    assert h.engine.view(run) == view


def test_http_requests_are_rendered(h: Harness) -> None:
    """Method, URL, headers, query and body come out of templates."""
    h.register(
        {
            "id": "call",
            "type": "http_request",
            "method": "post",
            "url": "https://{{input.host}}/v1",
            "headers": {"x-run": "{{run.id}}"},
            "body": {"n": "{{input.n}}"},
            "expected_status": 201,
        }
    )
    run = h.submit({"host": "api.example.com", "n": 3})
    assert h.find("call").request == {
        "method": "POST",
        "url": "https://api.example.com/v1",
        "headers": {"x-run": run},
        "body": {"n": 3},
        "expected_status": [201],
    }
